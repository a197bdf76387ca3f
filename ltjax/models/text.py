"""The text tower of CLIP: turns token ids into vectors to compare with the projected features of images.

Token ids come from CLIP's own tokenizer (`open_clip.tokenize`); its vocabulary is not part of ltjax.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltjax.errors import ConfigError, DataError
from ltjax.models import import_names, weight_files
from ltjax.models.numerics import matmul
from ltjax.models.tuning import Tuning
from ltjax.models.vit import ACTIVATIONS, Block

__all__ = ["TextTower", "load"]


class TextTower(nn.Module):
  """A causal transformer; the vector of a text is its last token's, normalised by LayerNorm and projected.

  v = norm(x_L[argmax tokens])^T P; CLIP compares directions. The end of a text has the largest token id.

  Args:
    vocabulary: number of token ids.
    length: the largest number of tokens in a text.
    width: channels.
    depth: blocks.
    heads: attention heads.
    outputs: size of the vectors.
    activation: as in `vit.ViT`.
    dtype: of the computation.

  References:
    Radford et al., `CLIP <https://arxiv.org/abs/2103.00020>`_, ICML 2021. Same function as open_clip's text tower.
  """
  vocabulary: int = 49408
  length: int = 77
  width: int = 512
  depth: int = 12
  heads: int = 8
  outputs: int = 512
  activation: str = "quick_gelu"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b e"]:
    """Returns the vectors, not normalised.

    Args:
      tokens: [b n], ids; the end of the text has the largest, zeros follow; n at most `length`.

    Raises:
      ConfigError: the texts are too long.
    """
    if tokens.shape[1] > self.length:
      raise ConfigError(f"TextTower: texts have at most {self.length} tokens, got {tokens.shape[1]}")
    normal = nn.initializers.normal(0.02)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype)
    embedding = self.param("embedding", normal, (self.vocabulary, self.width), jnp.float32)
    positions = self.param("positions", normal, (self.length, self.width), jnp.float32)
    x = (embedding[tokens] + positions[:tokens.shape[1]]).astype(self.dtype)
    for number in range(self.depth):
      x = Block(self.heads, norm, self.activation, False, 0.0, 0.0, self.dtype, Tuning(), causal=True,
                name=f"block{number + 1}")(x, False)
    last = norm(name="norm")(x)[jnp.arange(len(x)), jnp.argmax(tokens, axis=1)]
    return matmul(last, self.param("projection", normal, (self.width, self.outputs), jnp.float32))


def load(path: str, *, heads: int | None = None, activation: str = "quick_gelu") -> tuple[TextTower, dict]:
  """(tower, {"params": ...}) of a file of OpenAI's CLIP or open_clip, with the sizes found in the file.

  Args:
    path: as in `import_torch.into`.
    heads: attention heads; None for one of 64 channels each, as in all published networks.
    activation: "quick_gelu" in OpenAI's networks, "gelu" in LAION's.

  Raises:
    ConfigError: an unknown activation.
    DataError: no such file, one that is damaged, or one without a text tower.
  """
  if activation not in ACTIVATIONS:
    raise ConfigError(f"text.load: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
  file = weight_files.locate(path)
  found = weight_files.read(file)
  arrays = {place[1:]: np.asarray(array, np.float32)
            for place, array in import_names.convert(found, text=True).arrays.items()}
  if ("embedding",) not in arrays or ("projection",) not in arrays or ("positions",) not in arrays:
    raise DataError(f"{file} has no text tower of OpenAI's CLIP or open_clip; it is {import_names.describe(found)}")
  vocabulary, width = arrays["embedding",].shape
  tower = TextTower(vocabulary, len(arrays["positions",]), width,
                    len({place[0] for place in arrays if place[0].startswith("block")}), heads or max(width // 64, 1),
                    arrays["projection",].shape[1], activation)
  shapes = jax.eval_shape(lambda: tower.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
  wanted = {place: leaf.shape for place, leaf in flax.traverse_util.flatten_dict(shapes).items()}
  wrong = sorted("/".join(place) for place in wanted.keys() | arrays.keys()
                 if place not in arrays or place not in wanted or arrays[place].shape != wanted[place])
  if wrong:
    raise DataError(f"{file}: {len(wrong)} parameters of the text tower are missing, surplus or of another shape "
                    f"({'; '.join(wrong[:3])})")
  return tower, dict(params=flax.traverse_util.unflatten_dict({place: jnp.asarray(arrays[place]) for place in wanted}))
