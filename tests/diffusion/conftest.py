"""Arithmetic in `diffusion` never mixes dtypes by accident: float32 in, float32 out."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes():
  with jax.numpy_dtype_promotion("strict"):
    yield
