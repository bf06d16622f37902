"""Unit normal noise from one key for a whole batch, or from one key an example.

A key an example makes an example's noise, and so its sample, independent of the batch it is in: a
clip can be drawn again alone, and a batch cut in pieces gives what the whole would. One key for the
batch is what `jax.random` does, bit for bit; so is a batch of one example with one key.

Every function takes a typed key (`jax.random.key`) without axes, or an array [B] of them.

Source: ours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def split(key: jax.Array, num: int) -> jax.Array:
  """`num` new keys along a leading axis: [num] from one key, [num, B] from B keys."""
  if _one("split", key):
    return jax.random.split(key, num)
  # Axes are exchanged in the keys' data: JAX's check for keys used twice cannot follow them through
  # a transposition and would take the new keys to be spent.
  data = jax.random.key_data(jax.vmap(lambda k: jax.random.split(k, num))(key))
  return jax.random.wrap_key_data(jnp.swapaxes(data, 0, 1), impl=jax.random.key_impl(key))


def fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
  """A new key of the same form, from each key and one number for all of them."""
  if _one("fold_in", key):
    return jax.random.fold_in(key, data)
  return jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


def normal(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
  """Unit normal noise, float32, of a batch `shape` = (B, ...).

  Raises: ValueError where there is one key an example and their number is not B.
  """
  if _one("normal", key):
    return jax.random.normal(key, shape, jnp.float32)
  if key.shape[0] != shape[0]:
    raise ValueError(
      f"normal: {key.shape[0]} keys for a batch of {shape[0]} examples; give one key an example, or"
      " one for the batch"
    )
  if key.shape[0] == 1:  # the same program as one key's, so that what follows rounds alike
    return jax.random.normal(key.reshape(()), shape, jnp.float32)
  # Of shape (1, ...), as a batch of one example draws it.
  draw = lambda k: jax.random.normal(k, (1, *shape[1:]), jnp.float32)[0]
  return jax.vmap(draw)(key)


def _one(who: str, key: jax.Array) -> bool:
  """Whether there is one key for the batch; the alternative is one an example."""
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    # An array of two raw numbers would pass for the keys of two examples.
    raise ValueError(f"{who}: key has dtype {key.dtype}; make keys with jax.random.key")
  if key.ndim > 1:
    raise ValueError(f"{who}: keys have shape {key.shape}; give one key, or one an example, [B]")
  return key.ndim == 0
