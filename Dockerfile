# emu_jax with the tested versions of its dependencies, for CPUs; for others:
#   docker build --build-arg EXTRA=cuda13 -t emu_jax .     (or EXTRA=tpu)
FROM python:3.12-slim-bookworm
ARG EXTRA=""
WORKDIR /opt/emu_jax
COPY pyproject.toml requirements.txt README.md LICENSE NOTICE ./
COPY emu_jax emu_jax
COPY train train
COPY configs configs
RUN pip install --no-cache-dir -r requirements.txt ".${EXTRA:+[$EXTRA]}" \
  && useradd --create-home --uid 1000 emu
USER 1000
WORKDIR /home/emu
CMD ["emu-jax", "--help"]
