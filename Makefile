# make demo   sets up and draws a clip of 37 frames with the model in the package
# make train  sets up and trains that model again from nothing: some 5 hours on two cores
# make test   sets up and runs formatting, lint, the documentation's strict build and tests
# make docs   sets up and builds the documentation site in site/

PYTHON ?= python3
VENV ?= .venv
REFERENCE ?= 1  # 0: without PyTorch; the tests that compare with it are then skipped
CHROMIUM ?= 1  # 0: is not installed; without it the tests of the raters' page are skipped
PROMPT ?= a large red circle moving left quickly on a black background

BIN := $(VENV)/bin
export PYTHONPATH := .
# Linux: large arrays in pages of 2 MiB, where it lets programs ask (docs/results/huge_pages.md).
demo train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo train test docs browser clean

demo: $(VENV)/run
	$(BIN)/emu-jax sample "$(PROMPT)" --frames 37 --solver dpm++ --steps 10 --out demo.mp4

# Two virtual devices train on two cores 1.2 times as fast as one device does.
train: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2
train: $(VENV)/run
	$(BIN)/emu-train prepare shapes --out data/shapes_32 --size 32 --num-clips 20000
	$(BIN)/emu-train prepare shapes --out data/shapes_64 --size 64
	$(BIN)/python -m experiments.lively --clips data/shapes_64/videos --out data/shapes_64/lively
	$(BIN)/emu-train run --config shapes_64
	$(BIN)/emu-jax evaluate --checkpoint runs/shapes_64 --num-prompts 512 --solver dpm++ --steps 10

test: $(VENV)/test $(VENV)/reference-$(strip $(REFERENCE)) browser docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --durations 15

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(VENV)/run: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt --editable .
	touch $@

$(VENV)/test: $(VENV)/run requirements-test.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@

$(VENV)/docs: $(VENV)/run requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	touch $@

$(VENV)/reference-1: $(VENV)/test requirements-reference.txt
	$(BIN)/python -m pip install --quiet -r requirements-reference.txt
	touch $@

$(VENV)/reference-0: $(VENV)/test
	touch $@

# Debian's, which has its driver. Where it cannot be had, the tests of the page say so and are skipped.
APT := apt-get -qq -o Acquire::http::Timeout=30 -o Acquire::Retries=1
browser:
	@command -v chromedriver >/dev/null || [ "$(strip $(CHROMIUM))" = 0 ] || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  ($(APT) update && DEBIAN_FRONTEND=noninteractive $(APT) install -y --no-install-recommends \
	    chromium chromium-driver) >/dev/null || echo "browser: apt-get could not install chromium"; \
	else echo "browser: install chromium and chromium-driver to test the raters' page"; fi

clean:
	rm -rf $(VENV) build site *.egg-info
