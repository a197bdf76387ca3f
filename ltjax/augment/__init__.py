from ltjax.augment import images as _i
from ltjax.augment.images import random_crop

__all__ = ["random_crop", "flip", "jitter", "mixup", "random_resized_crop"]
def flip(images, key):
  return _i.random_flip(images, key)
def jitter(images, key, *, strengths: tuple):
  return _i.jitter(images, *_i.draw_jitter(key, len(images), strengths=strengths))
def mixup(images, key, labels, *, alpha: float):
  share, order = _i.draw_mixup(key, len(labels), alpha=alpha)
  return _i.mixup(images, labels, share, order)
def random_resized_crop(images, key, *, size: int, area: tuple = (0.08, 1.0), ratio: tuple = (3/4, 4/3)):
  raise NotImplementedError
from ltjax.augment import crops

random_resized_crop.boxes = crops.random_resized
