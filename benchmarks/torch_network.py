"""The video U-Net in PyTorch: diffusers' image U-Net with temporal layers after the spatial ones.

The spatial half is an unchanged `UNet2DConditionModel`; what crosses frames is added by replacing
its convolutions and transformers by pairs of themselves and a temporal layer. `load` copies the
weights of `emu_jax.models.unet.UNet`, path by path. Arrays are `(B T) C H W`, as diffusers' are.
"""

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from benchmarks.problem import Problem


class TemporalConv(nn.Module):
  """x plus a convolution over frames at every pixel.

  A 3-D convolution, as in diffusers' own temporal layers; a 1-D one over folded pixels is slower.
  """

  def __init__(self, channels: int, kernel: int, num_frames: int):
    super().__init__()
    self.num_frames = num_frames
    self.conv = nn.Conv3d(channels, channels, (kernel, 1, 1), padding=(kernel // 2, 0, 0))

  def forward(self, x: Tensor) -> Tensor:
    clips = x.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # B C T H W
    return x + self.conv(clips).transpose(1, 2).flatten(0, 1)


class TemporalTransformer(nn.Module):
  """x plus diffusers' transformer blocks over frames at every pixel."""

  def __init__(self, channels: int, num_heads: int, problem: Problem):
    super().__init__()
    self.num_frames = problem.num_frames
    self.norm = nn.GroupNorm(problem.norm_groups, channels, eps=1e-6)
    self.proj_in = nn.Linear(channels, channels)
    self.transformer_blocks = nn.ModuleList(
      BasicTransformerBlock(channels, num_heads, channels // num_heads, double_self_attention=True)
      for _ in range(problem.temporal_layers)
    )
    self.proj_out = nn.Linear(channels, channels)
    self.register_buffer("positions", sinusoid(problem.num_frames, channels), persistent=False)

  def forward(self, x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    h = self.norm(x).unflatten(0, (-1, self.num_frames))  # B T C H W
    h = h.permute(0, 3, 4, 1, 2).reshape(-1, self.num_frames, C)
    h = self.proj_in(h) + self.positions
    for block in self.transformer_blocks:
      h = block(h)
    h = self.proj_out(h).reshape(-1, H, W, self.num_frames, C)
    return x + h.permute(0, 3, 4, 1, 2).reshape(N, C, H, W)


class Followed(nn.Module):
  """A spatial layer, then a temporal one; takes and returns what the spatial one does."""

  def __init__(self, spatial: nn.Module, temporal: nn.Module):
    super().__init__()
    self.spatial, self.temporal = spatial, temporal

  def forward(self, *args, **kwargs):
    h = self.spatial(*args, **kwargs)
    return (self.temporal(h[0]),) if isinstance(h, tuple) else self.temporal(h)


class FirstConv(nn.Module):
  """Two convolutions whose results add up: of the noisy latents, frozen, and of known frames."""

  def __init__(self, image: nn.Conv2d, concat_channels: int):
    super().__init__()
    self.image = image
    self.concat = nn.Conv2d(concat_channels, image.out_channels, 3, padding=1, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    image, concat = x.split([self.image.in_channels, self.concat.in_channels], dim=1)
    return self.image(image) + self.concat(concat)


def sinusoid(num_frames: int, width: int) -> Tensor:
  """[T, width]: cosines, then sines, of the frame numbers."""
  frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
  angles = torch.arange(num_frames)[:, None] * frequencies
  return torch.cat([angles.cos(), angles.sin()], dim=-1)


def network(problem: Problem) -> UNet2DConditionModel:
  """The network, initialised by PyTorch's own rules; only its temporal half takes gradients."""
  p = problem
  unet = UNet2DConditionModel(
    sample_size=p.side,
    in_channels=p.in_channels,
    out_channels=p.in_channels,
    block_out_channels=p.channels,
    down_block_types=[f"{'CrossAttn' if d else ''}DownBlock2D" for d in p.transformer_depth],
    up_block_types=[f"{'CrossAttn' if d else ''}UpBlock2D" for d in p.transformer_depth[::-1]],
    layers_per_block=p.num_res_blocks,
    transformer_layers_per_block=[max(d, 1) for d in p.transformer_depth],  # last: the middle's too
    attention_head_dim=p.num_heads,  # diffusers' name for the number of heads
    cross_attention_dim=p.context_dim,
    use_linear_projection=p.linear_projection,
    norm_num_groups=p.norm_groups,
    norm_eps=1e-5,
    flip_sin_to_cos=True,
    freq_shift=0,
  )
  add_temporal(unet, problem)
  for name, parameter in unet.named_parameters():
    parameter.requires_grad_(trained(name))
  return unet


def add_temporal(unet: UNet2DConditionModel, problem: Problem) -> None:
  """Puts a temporal layer after every spatial convolution and transformer but the last."""
  p, C = problem, problem.channels

  def convolved(spatial):
    features = spatial.out_channels
    return Followed(spatial, TemporalConv(features, p.temporal_kernel, p.num_frames))

  def fill(block, level):
    for resnet in block.resnets:
      resnet.conv1, resnet.conv2 = convolved(resnet.conv1), convolved(resnet.conv2)
    for i, spatial in enumerate(getattr(block, "attentions", ())):
      block.attentions[i] = Followed(spatial, TemporalTransformer(C[level], p.num_heads[level], p))
    for sampler in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ():
      sampler.conv = convolved(sampler.conv)

  first = convolved(unet.conv_in)
  first.spatial = FirstConv(first.spatial, p.concat_channels)
  unet.conv_in = first
  for level, block in enumerate(unet.down_blocks):
    fill(block, level)
  fill(unet.mid_block, -1)
  for level, block in enumerate(reversed(unet.up_blocks)):
    fill(block, level)


def trained(name: str) -> bool:
  """Whether a parameter of `network` belongs to the half that a factorized model trains."""
  return ".temporal." in name or name.startswith("conv_in.spatial.concat.")


HEADS = {  # first component of our path -> module
  "conv_in": "conv_in.spatial.image",
  "concat_in": "conv_in.spatial.concat",
  "temporal_conv_in": "conv_in.temporal",
  "time": "time_embedding",
  "mid_res_0": "mid_block.resnets.0",
  "mid_res_1": "mid_block.resnets.1",
  "mid_attention": "mid_block.attentions.0.spatial",
  "temporal_mid_attention": "mid_block.attentions.0.temporal",
  "norm_out": "conv_norm_out",
  "conv_out": "conv_out",
}
INSIDE = (  # the rest of our path, joined by "." -> the rest of the module's
  (r"\bgroup\.", ""),
  (r"temporal_conv_(\d)", r"conv\1.temporal"),
  (r"\bconv_(\d)", r"conv\1.spatial"),
  (r"norm_(\d)", r"norm\1"),
  (r"layer_(\d+)", r"transformer_blocks.\1"),
  (r"self_attention", "attn1"),
  (r"second_attention", "attn2"),
  (r"(attn\d)\.([qkv])\b", r"\1.to_\2"),
  (r"(attn\d)\.out\b", r"\1.to_out.0"),
  (r"feed_forward\.in\b", "ff.net.0.proj"),
  (r"feed_forward\.out\b", "ff.net.2"),
  (r"\bkernel$|\bscale$", "weight"),
)
SITES = re.compile(r"(temporal_)?(down|up)_(\d+)_(res|attention|sample)(?:_(\d+))?$")


def torch_name(path: str, levels: int) -> str:
  """The parameter of `network` that holds what our U-Net keeps under `path`."""
  head, *rest = path.split("/")
  inside = ".".join(rest)
  if head == "time":
    inside = inside.replace("in.", "linear_1.").replace("out.", "linear_2.")
  elif "_res_" in head:
    inside = re.sub(r"^time\b", "time_emb_proj", re.sub(r"^skip\b", "conv_shortcut", inside))
  for ours, theirs in INSIDE:
    inside = re.sub(ours, theirs, inside)
  return f"{HEADS.get(head) or site(head, levels)}.{inside}"


def site(head: str, levels: int) -> str:
  """The module of a level's block: `up_2_attention_0` -> `up_blocks.0.attentions.0.spatial`."""
  temporal, way, level, kind, i = SITES.match(head).groups()
  block = f"{way}_blocks.{level if way == 'down' else levels - 1 - int(level)}"
  if kind == "res":
    return f"{block}.resnets.{i}"
  half = "temporal" if temporal else "spatial"
  if kind == "attention":
    return f"{block}.attentions.{i}.{half}"
  return f"{block}.{way}samplers.0.conv.{half}"


def load(net: nn.Module, weights: Mapping[str, np.ndarray], levels: int) -> None:
  """Copies our weights, by path, into the network.

  Raises: RuntimeError, by PyTorch, where a parameter is left over on either side.
  """
  shapes = {name: p.shape for name, p in net.named_parameters()}
  state = {}
  for path, value in weights.items():
    name = torch_name(path, levels)
    state[name] = torch.from_numpy(torch_layout(value)).reshape(shapes[name])
  net.load_state_dict(state)


def torch_layout(value: np.ndarray) -> np.ndarray:
  """[..., in, out] -> [out, in, ...], contiguous; vectors stay."""
  if value.ndim < 2:
    return np.array(value)
  return np.ascontiguousarray(np.moveaxis(value, (-1, -2), (0, 1)))
