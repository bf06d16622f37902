"""A second hand that draws moving shapes, with Pillow's polygons: what the oracle is tested on.

It shares no code with the data set's renderer nor with the oracle, so that the three check each
other.
"""

import numpy as np
from PIL import Image, ImageDraw

FINER = 8  # drawn this much larger, then averaged


def drawn(
  shape, colour, background, *, side=32, across=7.0, centre=(16.0, 16.0), gap=None, period=3.0
):
  """One uint8 [side, side, 3] frame.

  Args:
    across, centre, period: in 32nds of the side; the centre is that of the bounding box.
    gap: the colour of horizontal stripes over half of every period, or None.
  """
  scale = side / 32 * FINER
  mask = Image.new("L", (side * FINER, side * FINER))
  x, y, r = centre[0] * scale, centre[1] * scale, across * scale / 2
  draw = ImageDraw.Draw(mask)
  if shape == "circle":
    draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
  elif shape == "square":
    draw.rectangle([x - r, y - r, x + r, y + r], fill=255)
  elif shape == "triangle":
    draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=255)
  else:
    draw.rectangle([x - r, y - r / 3, x + r, y + r / 3], fill=255)
    draw.rectangle([x - r / 3, y - r, x + r / 3, y + r], fill=255)
  fine = np.broadcast_to(np.array(background, float), (side * FINER, side * FINER, 3)).copy()
  inside = np.asarray(mask) > 0
  fine[inside] = colour
  if gap is not None:
    phase = (np.arange(side * FINER) - (y - r)) / scale % period < period / 2
    fine[inside & ~phase[:, None]] = gap
  return np.round(fine.reshape(side, FINER, side, FINER, 3).mean(axis=(1, 3))).astype(np.uint8)
