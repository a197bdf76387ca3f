"""Small images for tests: files and folders in the layouts that the sources read."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def jpeg(number: int, size: int = 8) -> bytes:
  """A JPEG of random pixels, another one for each number."""
  pixels = np.random.default_rng(number).integers(0, 255, (size, size, 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "JPEG")
  return data.getvalue()


def write_tree(root, counts: dict[str, int], first: int = 0) -> list[str]:
  """counts[c] JPEGs in a folder for each class c; their paths, sorted. `first` numbers the first image."""
  paths = []
  for name, count in counts.items():
    (root / name).mkdir(parents=True)
    for k in range(count):
      (root / name / f"{k:03d}.jpg").write_bytes(jpeg(first + len(paths)))
      paths.append(f"{name}/{k:03d}.jpg")
  return sorted(paths)


def write_crops(root, counts: dict[str, int], height: int = 120, width: int = 150) -> list[str]:
  """counts[c] crops of scikit-learn's two photographs in a folder for each class c, in turns; their complete paths."""
  pixels, generator, paths = load_sample_images().images, np.random.default_rng(0), []
  for label, (name, count) in enumerate(counts.items()):
    (root / name).mkdir(parents=True)
    for k in range(count):
      top, left = generator.integers(0, 427 - height), generator.integers(0, 640 - width)
      paths.append(str(root / name / f"{k}.png"))
      Image.fromarray(pixels[label % 2][top:top + height, left:left + width]).save(paths[-1])
  return paths


def write_lines(path, *lines: str):
  """A text file of these lines."""
  path.write_text("".join(f"{line}\n" for line in lines))
  return str(path)
