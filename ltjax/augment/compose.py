"""Temporary: replaced by the augment branch."""
import zlib

import jax

from ltjax.augment.images import normalize

_N = dict(random_crop=0, flip=1, mixup=2, jitter=3)
def compose(operations):
  def apply(images, key, labels, mean, std):
    pairs, normalized = ((labels, 1.0),), False
    for name, op in operations:
      k = jax.random.fold_in(key, _N.get(name, zlib.crc32(name.encode())))
      if name == "mixup":
        if not normalized: images, normalized = normalize(images, mean, std), True
        images, pairs = op(images, k, labels)
      else:
        images = op(images, k)
    if not normalized: images = normalize(images, mean, std)
    return images, pairs
  return apply
