"""CE and GCL by preset=short in PyTorch, on ltjax's subset of CIFAR-10: another implementation to compare with.

python benchmarks/pytorch_short.py --dir=DIR [--methods ce gcl] [--seeds 0 1]

DIR holds the official binary files; `pip install torch` brings PyTorch. Only the images and their labels are ltjax's:
the network, the order of the images, crops and flips, the losses, the sampler and the optimiser are written here, from
the papers and the authors' formulas. The accuracies are printed and added to ltjax/report/implementations.csv, which
`ltjax reproduce --short` compares with.
"""

import argparse
import csv
import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import pytorch_cpu  # noqa: E402
from configs import ce_cifar  # noqa: E402
from ltjax.config import parse  # noqa: E402
from ltjax.data.sources import CIFAR_MEAN, CIFAR_STD  # noqa: E402

TABLE = ROOT / "ltjax" / "report" / "implementations.csv"
BATCH, EPOCHS, AGAIN = 128, 12, 3
FACTORS = {0: 0.2, 9: 0.1, 10: 0.01, 11: 0.01}  # of the learning rate 0.1, by epoch; 1 in the others


class Cosines(nn.Module):
  """The classifier of GCL: cosines between features and class vectors that start as U(-1, 1) at unit norm."""

  def __init__(self, dim: int, classes: int):
    super().__init__()
    self.weight = nn.Parameter(F.normalize(torch.empty(dim, classes).uniform_(-1, 1), dim=0))

  def forward(self, features):
    """Returns the cosines."""
    return F.normalize(features, dim=1) @ F.normalize(self.weight, dim=0)


class Normalize(nn.Module):
  """Images in [0, 1] to images with the mean and the standard deviation of the field."""

  def forward(self, images):
    """Returns the normalised images."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (CIFAR_MEAN, CIFAR_STD))
    return (images - mean) / std


def network(cosine: bool) -> nn.Sequential:
  """ResNet-32 with the papers' initial values."""
  model = nn.Sequential(Normalize(), *pytorch_cpu.network())
  for layer in model.modules():
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
      nn.init.kaiming_normal_(layer.weight)
  if cosine:
    model[-1] = Cosines(64, 10)
  return model


def crops(images, generator):
  """32 x 32 crops of images [n c h w] with a black border of 4, each flipped or not."""
  padded = F.pad(images, (4, 4, 4, 4))
  tops, lefts = torch.randint(9, (2, len(images)), generator=generator).tolist()
  flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
  cut = [image[:, top:top + 32, left:left + 32] for image, top, left in zip(padded, tops, lefts, strict=True)]
  return torch.stack([image.flip(-1) if flip else image for image, flip in zip(cut, flips, strict=True)])


def gcl(counts, *, scale: float, noise: float, margin: float):
  """Gaussian clouded logits: s (z_c - noise |e| delta_c / max delta - m [c = y]), e ~ N(0, 1/3) within [-1, 1]."""
  delta = torch.log(counts.max() / counts)

  def logits(cosines, labels):
    clouds = noise * torch.normal(0.0, 1 / 3, cosines.shape).clamp(-1, 1).abs()
    return scale * (cosines - clouds * delta / delta.max() - margin * F.one_hot(labels, len(counts)))

  return logits


def focal(logits, labels):
  """The focal loss with gamma 1 and no gradient through its weight."""
  loss = F.cross_entropy(logits, labels, reduction="none")
  return ((1 - torch.exp(-loss)).detach() * loss).mean()


def cben(counts):
  """The weight of an image of each class: beta_c = 0.999 + 0.0009 delta_c / max delta in the effective number."""
  delta = torch.log(counts.max() / counts).double()
  beta = 0.999 + 0.0009 * delta / delta.max()
  return (1 - beta) / (1 - beta ** counts.double())


def accuracy(model, images, labels) -> float:
  """The accuracy in per cent."""
  model.eval()
  with torch.no_grad():
    found = torch.cat([model(part).argmax(1) for part in images.split(500)])
  return 100 * (found == labels).float().mean().item()


def train(method: str, seed: int, train_set, test_set):
  """Yields (stage, accuracy in per cent after it)."""
  torch.manual_seed(seed)
  images, labels = train_set
  counts = torch.bincount(labels).float()
  model = network(method == "gcl").to(memory_format=torch.channels_last)
  adjust, generator = gcl(counts, scale=30.0, noise=1.0, margin=0.0), torch.Generator().manual_seed(seed)

  def epoch(order, loss, optimizer, number):
    total = 0.0
    for at in range(0, len(order) - BATCH + 1, BATCH):
      chosen = order[at:at + BATCH]
      optimizer.zero_grad(set_to_none=True)
      value = loss(model(crops(images[chosen], generator)), labels[chosen])
      value.backward()
      optimizer.step()
      total += value.item()
    print(f"{method} seed {seed} epoch {number}: loss {total / (len(order) // BATCH):.4f}, "
          f"{accuracy(model, *test_set):.2f} %", flush=True)

  def optimizer_of(part):
    return torch.optim.SGD(part.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)

  optimizer = optimizer_of(model)
  for number in range(EPOCHS):
    model.train()
    optimizer.param_groups[0]["lr"] = 0.1 * FACTORS.get(number, 1.0)
    loss = F.cross_entropy if method == "ce" else lambda cosines, of: F.cross_entropy(adjust(cosines, of), of)
    epoch(torch.randperm(len(labels), generator=generator), loss, optimizer, number)
  yield 1, accuracy(model, *test_set)
  if method == "gcl":
    for layer in model[:-1]:
      layer.requires_grad_(False)
    adjust, optimizer = gcl(counts, scale=20.0, noise=0.5, margin=0.1), optimizer_of(model[-1])
    for number in range(AGAIN):
      model.eval()
      optimizer.param_groups[0]["lr"] = 0.001 * (1 + math.cos(math.pi * number / AGAIN))
      order = torch.multinomial(cben(counts)[labels], len(labels), replacement=True, generator=generator)
      epoch(order, lambda cosines, of: focal(adjust(cosines, of), of), optimizer, number)
    yield 2, accuracy(model, *test_set)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dir", required=True)
  parser.add_argument("--methods", nargs="+", default=["ce", "gcl"], choices=("ce", "gcl"))
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
  args = parser.parse_args()
  config = ce_cifar.get_config("cifar10,100,preset=short")
  config.dataset.dir = args.dir
  data = parse(config).read()[0]

  def tensors(images, labels):
    return torch.as_tensor(images).permute(0, 3, 1, 2) / 255, torch.as_tensor(labels)

  header, *known = csv.reader(TABLE.open())
  for seed in args.seeds:
    for method in args.methods:
      for stage, top1 in train(method, seed, tensors(*data.train), tensors(*data.test)):
        row = [method, str(stage), str(seed), f"{top1:.2f}", "pytorch_short"]
        known = [other for other in known if other[:3] + other[4:] != row[:3] + row[4:]]
        known.append(row)
        with TABLE.open("w", newline="") as file:
          csv.writer(file, lineterminator="\n").writerows([header, *known])


if __name__ == "__main__":
  main()
