"""The published sizes and lists of the field's large data sets, to check a copy against."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple


class SplitList(NamedTuple):
  """An official list: its file name without .txt, its number of lines, and the digests of its known versions.

  A digest is the SHA-256 of the text or, where the text was not available, git's SHA-1 of it as a blob.
  """

  name: str
  lines: int
  digests: tuple[str, ...]


class Official(NamedTuple):
  """Number of classes, lists by role, images of the largest and smallest class, and group sizes if published."""

  classes: int
  lists: Mapping[str, SplitList]
  largest: int
  smallest: int
  groups: Mapping[str, int] | None = None


# The lists of ImageNet-LT and Places-LT (Liu et al., 2019) and of iNaturalist 2018 (Van Horn et al., 2018) as Kang et
# al. (facebookresearch/classifier-balancing) distribute them; second digests belong to hyperconnect/LADE, which has the
# same images, labels and order with paths of another layout.
OFFICIAL = dict(
    imagenet_lt=Official(
        1000, dict(
            train=SplitList("ImageNet_LT_train", 115_846, ("a063f095fcd475db4cf8b0658c4b73955535bbf9",)),
            held_out=SplitList("ImageNet_LT_val", 20_000, (
                "9af7ba688acf9532ff5845a8fb14a1e97fdc4c51ac48bc72c08ea9c3f7ff142e",)),
            test=SplitList("ImageNet_LT_test", 50_000, (
                "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5",
                "358650a8b13930b491559b09a48d05dd3c0d76860dc011995cd1896c1a07fb6d"))),
        1280, 5, dict(many=385, medium=479, few=136)),
    places_lt=Official(
        365, dict(
            train=SplitList("Places_LT_train", 62_500, (
                "726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7",
                "09410632a22045212fb3231623261e8426ba8dc1887a2b633afeab78ba9c8868")),
            held_out=SplitList("Places_LT_val", 7_300, (
                "719e3cf3766c09134ea28f56f1036c78def511ac1ed2c2532a6beef78f2439ba",
                "09cf0e5abf684f946f60b6bf9c526a5ee85d09f555d2c4b9cfaaf22b19d04974")),
            test=SplitList("Places_LT_test", 36_500, (
                "44eee8441c8098c59195465abede425721bc35525d75209f9433b161a6eb37bc",
                "3c34622e44f036b17c7926b0b6bbdd3d335fa63077409ebb06da68afa7073cd9"))),
        4980, 5, dict(many=131, medium=163, few=71)),
    inat2018=Official(
        8142, dict(
            train=SplitList("iNaturalist18_train", 437_513, ("4accdb7584d2f0a5106c40a33ed6afa392189bcc",)),
            test=SplitList("iNaturalist18_val", 24_426, (
                "efaeff65f80641b60864470e6f255aa69453406ef5717eec8c6681748f3a61f3",))),
        1000, 2))


def is_official(data: bytes, known: SplitList) -> bool:
  """Whether `data`, the bytes of a list, equal a known version of the official list."""
  blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
  return not {hashlib.sha256(data).hexdigest(), blob}.isdisjoint(known.digests)
