import numpy as np
from PIL import Image

from ltjax.report import plots


def test_a_confusion_matrix_of_many_classes_is_small_and_shows_its_diagonal(tmp_path):
  classes, path = 500, tmp_path / "c.png"
  plots.confusion_matrix(3 * np.eye(classes, dtype=np.int64), np.arange(classes, 0, -1),
                         tuple(map(str, range(classes))), path)
  assert path.stat().st_size < 10**6
  pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
  # The blue end of the colour map: the diagonal and the colour bar.
  assert (pixels[..., 2] - pixels[..., 0] > 60).sum() > 500
