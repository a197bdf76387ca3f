"""ResNet-32 on this machine's CPU, ltjax beside PyTorch in one run: training, a frozen backbone, evaluation.

python benchmarks/pytorch_cpu.py --dir=DIR [--batch-size=128] [--rounds=5] [--calls=2]

DIR holds the official binary files; `pip install torch` brings PyTorch. PyTorch's rows train on one normalised batch,
as the bare flax step does; ltjax's complete steps also gather, crop, flip and normalise. The rows take turns, and the
medians over the rounds are printed and written to benchmarks/results/.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import cifar  # noqa: E402
from configs import ce_cifar, gcl_cifar  # noqa: E402
from ltjax import stage as stages  # noqa: E402
from ltjax.config import parse  # noqa: E402
from ltjax.report import page as report  # noqa: E402


class Block(nn.Module):
  """A basic block; where it changes the shape, its shortcut takes every second pixel and pads zero channels."""

  def __init__(self, before: int, width: int):
    super().__init__()
    self.pad = (width - before) // 2
    self.conv1 = nn.Conv2d(before, width, 3, 1 + (width != before), 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

  def forward(self, x):
    """Returns the maps."""
    y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
    if self.pad:
      x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
    return F.relu(x + y)


def network() -> nn.Sequential:
  """The layers of `ResNetCIFAR(depth=32)` with mean pooling and a linear classifier of 10 classes."""
  widths = [16, *(width for width in (16, 32, 64) for _ in range(5))]
  blocks = [Block(*pair) for pair in zip(widths, widths[1:], strict=False)]
  return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
                       nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def torch_step(args, *, compiled: bool, channels_last: bool, frozen: bool = False):
  """A function that trains the network by a step of SGD with momentum; if frozen, only its classifier."""
  torch.manual_seed(0)
  model, layout = network(), torch.channels_last if channels_last else torch.contiguous_format
  model = model.to(memory_format=layout)
  images = torch.randn(args.batch_size, 3, 32, 32).contiguous(memory_format=layout)
  labels = torch.randint(10, (args.batch_size,))
  if frozen:
    model.eval()
    for layer in model[:-1]:
      layer.requires_grad_(False)
  optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9, weight_decay=2e-4)
  forward = torch.compile(model) if compiled else model

  def call():
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(forward(images), labels).backward()
    optimizer.step()

  return call


def torch_evaluation(args, *, compiled: bool, channels_last: bool):
  """A function that predicts a batch."""
  model, layout = network().eval(), torch.channels_last if channels_last else torch.contiguous_format
  model = model.to(memory_format=layout)
  images = torch.randn(args.batch_size, 3, 32, 32).contiguous(memory_format=layout)
  forward = torch.compile(model) if compiled else model

  def call():
    with torch.no_grad():
      forward(images).argmax(1)

  return call


def evaluation(args):
  """A function that predicts a batch by the network of ce_cifar."""
  config = ce_cifar.get_config()
  config.dataset.dir = args.dir
  spec = parse(config)
  (stage,) = stages.build(spec, spec.read()[0])
  model, variables = stage.model, stage.init()
  images = jax.device_put(np.random.default_rng(0).standard_normal((args.batch_size, 32, 32, 3), np.float32))
  predict = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0].argmax(1))
  return lambda: predict(variables, images)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dir", required=True)
  parser.add_argument("--batch-size", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--calls", type=int, default=2)
  args = parser.parse_args()
  args.steps_per_call, args.precision = 1, "float32"
  kinds = {"eager": (False, False), "eager, channels last": (False, True), "compiled, channels last": (True, True)}
  kinds = {name: dict(compiled=compiled, channels_last=last) for name, (compiled, last) in kinds.items()}
  groups = {
      "Training": {"ltjax, bare flax step": cifar.bare_step(args),
                   "ltjax, ce_cifar": cifar.complete_step(ce_cifar, "representation", args),
                   **{f"PyTorch, {name}": torch_step(args, **kind) for name, kind in kinds.items()}},
      "Training of the classifier, backbone frozen": {
          "ltjax, gcl_cifar": cifar.complete_step(gcl_cifar, "classifier", args),
          **{f"PyTorch, {name}": torch_step(args, **kind, frozen=True) for name, kind in kinds.items()}},
      "Evaluation": {"ltjax": evaluation(args),
                     **{f"PyTorch, {name}": torch_evaluation(args, **kind) for name, kind in kinds.items()}}}
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  lines = [f"# ResNet-32 on a CPU, batch {args.batch_size}, float32: ltjax beside PyTorch", ""]
  for title, calls in groups.items():
    rows = cifar.measure(calls, args.rounds, args.calls, 1)
    best = min(seconds for name, (_, seconds) in rows.items() if name.startswith("PyTorch"))
    lines += [f"## {title}", "",
              "| step | ms a step | images/s | of PyTorch's best rate |", "| --- | ---: | ---: | ---: |",
              *(f"| {name} | {1e3 * seconds:.1f} | {args.batch_size / seconds:.0f} | {best / seconds:.2f} |"
                for name, (_, seconds) in rows.items()), ""]
  lines += [f"Medians of {args.rounds} rounds of {args.calls} calls, the rows in turn; {torch.get_num_threads()} "
            "threads.",
            f"{report.hardware()['device']}; {versions}, torch {torch.__version__}; commit {report.commit()}.", "",
            cifar.typed("pytorch_cpu"), ""]
  (ROOT / "benchmarks" / "results" / "pytorch_cpu.md").write_text("\n".join(lines))
  print("\n".join(lines))


if __name__ == "__main__":
  main()
