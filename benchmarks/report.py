"""The benchmark's results as Markdown."""

import statistics

from benchmarks.agreement import LOSSES, TOLERANCE
from benchmarks.basics import spread

QUIET = 0.1  # of the machine, above which others' work shows in the times
NOISY = " **That is too much: the times below are no measurement.**"


def report(results: dict) -> str:
  """The whole page."""
  m, arguments = results["machine"], results["arguments"]
  versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
  options = "".join(
    f" --{k}" if v is True else f" --{k} {v}" for k, v in arguments.items() if v not in (False, 0)
  )
  return "\n".join(
    [
      "# Speed against PyTorch",
      "",
      f"`python -m benchmarks.torch_comparison{options}` on {m['date']} at commit {m['commit']}. "
      f"{m['processor']}, {m['cores']} cores for either side, {m['memory_GiB']} GiB; "
      f"{m['system']}; {versions}; {m['dtype']}. Before the run others used "
      f"{m['busy_before']:.0%} of the machine.{NOISY if m['busy_before'] > QUIET else ''}",
      "",
      results["configuration"],
      "",
      "PyTorch is diffusers' `UNet2DConditionModel` with temporal layers of the same size after "
      f"each spatial one, {arguments['layout']} arrays and fused AdamW; emu_jax is jitted. A "
      "training step updates the temporal layers alone: loss in latents, gradient, clipping, AdamW "
      "and average.",
      "",
      *agreement_lines(results["agreement"]),
      "",
      *time_lines(results),
      "",
      *memory_lines(results["memory"]),
      "",
      *loop_lines(results["loop"]),
      "",
    ]
  )


def agreement_lines(figures: dict) -> list[str]:
  every, trained = figures["parameters"]["all"][0], figures["parameters"]["trained"][0]
  worst = max(abs(a - b) / abs(a) for a, b in figures["losses"])
  return [
    "## Same mathematics",
    "",
    f"Randomly drawn weights copied over; {every:,} parameters on both sides, of which {trained:,} "
    f"train. Largest difference over the standard deviation (allowed: {TOLERANCE:.0e}): outputs "
    f"{figures['output']:.1e}, gradients {figures['gradient']:.1e} (the worst array: "
    f"`{figures['worst_gradient']}`), samples of a whole run {figures['samples']:.1e}. Losses of "
    f"{len(figures['losses'])} training steps: {worst:.1e} relative (allowed: {LOSSES:.0e}).",
  ]


def time_lines(results: dict) -> list[str]:
  lines = [
    "## Time",
    "",
    f"{results['arguments']['rounds']} rounds in one process, order alternated within each (A B B "
    "A). A ratio below 1 means that emu_jax is faster. Median (least to most) over rounds. "
    f"torch.compile: {results['compile']}.",
    "",
    "| task | contender | seconds | clips/s | seconds of emu_jax / seconds of it |",
    "|---|---|---|---|---|",
  ]
  for task, seconds in results["times"].items():
    for name, values in seconds.items():
      ratios = [a / b for a, b in zip(seconds["emu_jax"], values, strict=True)]
      ratio = "" if name == "emu_jax" else spread(ratios)
      rate = results["clips"][task] / statistics.median(values)
      lines.append(f"| {task} | {name} | {spread(values)} | {rate:.3g} | {ratio} |")
  return lines


def memory_lines(found: dict) -> list[str]:
  lines = [
    "## Memory",
    "",
    "Largest resident set in MiB (VmHWM), each task of each side in a process of its own that "
    "loads one framework: after the imports; in the task's second run, the mark begun anew before "
    "it; and of everything, compilation included.",
    "",
    "| task | contender | imports | running | everything |",
    "|---|---|---|---|---|",
  ]
  for task, sides in found.items():
    for name, v in sides.items():
      running = "unknown" if v["running"] is None else f"{v['running']:.0f}"
      lines.append(f"| {task} | {name} | {v['loaded']:.0f} | {running} | {v['peak']:.0f} |")
  return lines


def loop_lines(v: dict) -> list[str]:
  return [
    "## Waiting for data",
    "",
    f"emu_jax's training loop on its moving shapes ({v['config']}, {v['batch']} clips a step, "
    f"{v['steps']} steps after as many that used up what was read during compilation): "
    f"**{v['data_wait']:.1%}** of the time waiting for data, {v['step_s']:.3g} s a step, "
    f"{v['clips_per_s']:.3g} clips/s. Waiting counts while the device has nothing to do.",
  ]
