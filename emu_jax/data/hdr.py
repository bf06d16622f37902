"""Frames of high dynamic range -> ordinary RGB, in NumPy.

Diffuse white, 203 cd/m2 (ITU-R BT.2408), becomes the white of the result; what is brighter is
clipped to it, and what is darker keeps its ratio to it. Both signals are looked up by their 16-bit
codes, so that a frame costs two look-ups and a product by a 3x3 matrix.
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8, UInt16

PQ, HLG = 16, 18  # transfer characteristics in ITU-T H.273
WHITE = 203.0  # cd/m2 of diffuse white; ITU-R BT.2408, table 1
HLG_PEAK = 1000.0  # cd/m2 of HLG's nominal display
HLG_GAMMA = 1.2  # system gamma at that peak; ITU-R BT.2100, table 5
DISPLAY_GAMMA = 2.4  # of the result's display; ITU-R BT.1886
# Linear BT.2020 to BT.709: ITU-R BT.2407, whose values outside of BT.709 are clipped.
TO_709 = np.array(
  [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of linear BT.2020


def pq_light(signal: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """cd/m2 of a PQ signal in [0, 1]; the EOTF of ITU-R BT.2100, table 4."""
  m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
  power = signal ** (1 / m2)
  return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_light(signal: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Scene light in [0, 1] of an HLG signal in [0, 1]; ITU-R BT.2100, table 5, inverse OETF."""
  a = 0.17883277
  b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
  return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def to_sdr(rgb: UInt16[np.ndarray, "H W 3"], transfer: int) -> UInt8[np.ndarray, "H W 3"]:
  """RGB of primaries BT.2020, full range, as RGB of primaries BT.709 and gamma 2.4.

  Args:
    transfer: `PQ` or `HLG`.
  """
  light = _table(transfer)[rgb]  # relative to white for PQ, of the scene for HLG
  if transfer == HLG:  # the OOTF
    luminance = np.maximum(light @ LUMINANCE, 1e-9)[..., None]
    light *= HLG_PEAK / WHITE * luminance ** (HLG_GAMMA - 1)
  codes = np.clip(light @ TO_709.T, 0, 1) * 65535 + 0.5
  return _encoded()[codes.astype(np.uint16)]


@functools.cache
def _table(transfer: int) -> Float[np.ndarray, "65536"]:
  signal = np.arange(65536) / 65535
  light = pq_light(signal) / WHITE if transfer == PQ else hlg_light(signal)
  return light.astype(np.float32)


@functools.cache
def _encoded() -> UInt8[np.ndarray, "65536"]:
  return np.round(255 * (np.arange(65536) / 65535) ** (1 / DISPLAY_GAMMA)).astype(np.uint8)
