"""Vision transformers: the pretrained networks of timm, DINOv2, CLIP and big_vision in one module."""

import functools
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.augment.features import Generating
from ltjax.errors import ConfigError, nearest
from ltjax.losses.arguments import check_fields
from ltjax.models import tuning as tunings

__all__ = ["ViT"]

# (width, depth, heads)
SIZES = dict(tiny=(192, 12, 3), small=(384, 12, 6), base=(768, 12, 12), large=(1024, 24, 16), huge=(1280, 32, 16))
POOLS = ("token", "mean", "maps")
ACTIVATIONS = dict(gelu=functools.partial(nn.gelu, approximate=False), gelu_tanh=nn.gelu,
                   quick_gelu=lambda x: x * nn.sigmoid(1.702 * x))


class Style(NamedTuple):
  """The differences between the published families."""

  activation: str = "gelu"
  epsilon: float = 1e-6
  patch_bias: bool = True
  norm_pre: bool = False
  layer_scale: bool = False


STYLES = dict(plain=Style(), dinov2=Style(layer_scale=True),
              clip=Style("quick_gelu", 1e-5, patch_bias=False, norm_pre=True))


class ViT(nn.Module):
  """A vision transformer (Dosovitskiy et al.) with the variations of the pretrained networks.

  x_0 = [token; registers; patches + positions]; x <- x + s1 attention(norm1(x)); x <- x + s2 mlp(norm2(x)); norm(x)

  `positions` is a grid for the patches alone: the class token's position is part of `token`. If the images have another
  grid, the positions are resampled. Parameters are float32.

  Args:
    size: "tiny", "small", "base", "large" or "huge": sets the width, depth and heads that are not given.
    patch: side of a patch in pixels; it must divide the images' sides.
    style: "plain" (timm's AugReg and DeiT, ViT of Hugging Face, big_vision), "dinov2" (layer scale) or "clip" (a
      LayerNorm first, quick-GELU, patches without bias).
    pool: "token", the class token [b d]; "mean" of the patches [b d]; "maps", the patches [b h w d], on which CAMC and
      class activation maps work. All are after the last LayerNorm.
    class_token: whether there is a class token.
    registers: the number of further tokens without a patch.
    activation: "gelu", "gelu_tanh" or "quick_gelu"; None for the style's. LAION's CLIPs use "gelu", big_vision's
      networks "gelu_tanh".
    width: channels.
    depth: blocks.
    heads: attention heads, which divide the width.
    dropout: after the attention's and the MLP's last layer, in training, from the rng collection "dropout".
    drop_path: probability of leaving out a branch of the last block; it rises linearly from 0 at the first.
    dtype: of the computation; normalisations and softmax are in float32 or better.
    remat: recompute each block in the backward pass, which takes a fraction of the memory and a third more time.
    insert: a module between the last two blocks, `(maps, plan) -> maps` of the patches, such as `afa.AFA`; a generated
      row has the class token of the row that gives its class-related part.
    tuning: the method of fine-tuning, see `tuning`.

  References:
    Dosovitskiy et al., `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_, 2021, equations 1 to 4;
    Touvron et al., `CaiT <https://arxiv.org/abs/2103.17239>`_, 2021 (layer scale); Darcet et al., `Vision Transformers
    Need Registers <https://arxiv.org/abs/2309.16588>`_, 2024. Same functions as timm, transformers and open_clip.
  """
  size: str = "base"
  patch: Annotated[int, "[1, inf)"] = 16
  style: str = "plain"
  pool: str = "token"
  class_token: bool = True
  registers: Annotated[int, "[0, inf)"] = 0
  activation: str | None = None
  width: Annotated[int | None, "[1, inf)"] = None
  depth: Annotated[int | None, "[1, inf)"] = None
  heads: Annotated[int | None, "[1, inf)"] = None
  dropout: Annotated[float, "[0, 1)"] = 0.0
  drop_path: Annotated[float, "[0, 1)"] = 0.0
  dtype: Any = jnp.float32
  remat: bool = False
  insert: nn.Module | None = None
  tuning: Any = None

  imports_weights = True  # files of timm and of CLIP fit it
  families = dict(insert="ltjax.models.afa", tuning="ltjax.models.tuning")  # where a nested block is looked up

  def __post_init__(self):
    check_fields(self)
    _check(self)
    tunings.check(self.tuning, self)
    super().__post_init__()

  @nn.nowrap
  def shape(self) -> tuple[int, int, int]:
    """(width, depth, heads)."""
    given = self.width, self.depth, self.heads
    return tuple(own or usual for own, usual in zip(given, SIZES[self.size], strict=True))

  @nn.nowrap
  def layers(self) -> tuple[str, ...]:
    """Regular expressions of the parameters, from the input to the output."""
    blocks = (f"backbone/block{number + 1}/.*" for number in range(self.shape()[1]))
    return ("backbone/(patch/|token|registers|positions|norm_pre/).*", *blocks, "backbone/norm/.*")

  def __call__(self, images: Float[Array, "b h w c"] | Generating, *,
               train: bool) -> Float[Array, "b+m d"] | Float[Array, "b+m h2 w2 d"]:
    """Returns features [b d], or maps [b h2 w2 d] with pool="maps".

    Args:
      images: [b h w c], normalised as the weights expect; with an `insert` also `Generating`, which adds m rows.
      train: apply dropout, which needs the rng "dropout" if a rate is not 0.

    Raises:
      ConfigError: the patches do not divide the images.
    """
    prefix, patches = self.tokens(images, train=train)
    if self.pool == "token":
      return prefix[:, 0]
    return patches if self.pool == "maps" else jnp.mean(patches, axis=(1, 2))

  @nn.compact
  def tokens(self, images, *, train: bool) -> tuple[Float[Array, "b p d"], Float[Array, "b h2 w2 d"]]:
    """Returns (class token and registers [b p d], patches [b h2 w2 d]), after the last LayerNorm."""
    images, plan = images if isinstance(images, Generating) else (images, None)
    tune, style, (width, depth, heads) = self.tuning or tunings.Tuning(), STYLES[self.style], self.shape()
    # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large, and pretrained networks have such channels.
    norm = functools.partial(nn.LayerNorm, epsilon=style.epsilon, use_fast_variance=False, dtype=self.dtype)
    x, prefix = self._embed(images, tune, style, width)
    grid, (x, first) = x.shape[1:3], (x.reshape(x.shape[0], -1, width), prefix)
    x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape)), x], axis=1)
    if style.norm_pre:
      x = tune.layer(norm(name="norm_pre"), x)
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    start = len(first)
    for number in range(depth):
      prompts = tune.prompts(self, number, width)
      if prompts is not None:  # after the first block they replace the prompts of the block before
        after = x[:, start + (tune.number if number else 0):]
        prompts = jnp.broadcast_to(prompts.astype(x.dtype), (x.shape[0], *prompts.shape))
        x = jnp.concatenate([x[:, :start], prompts, after], axis=1)
      if self.insert is not None and number == depth - 1:
        x = _inserted(x, self.insert, start + tune.number, grid, plan)
      x = block(heads, norm, self.activation or style.activation, style.layer_scale, self.dropout,
                self.drop_path * number / max(depth - 1, 1), self.dtype, tune, name=f"block{number + 1}")(x, train)
    x = tune.layer(norm(name="norm"), x)
    return x[:, :start], x[:, start + tune.number:].reshape(x.shape[0], *grid, width)

  def _embed(self, images, tune, style, width):
    """(patches with positions [b h w d], class token and registers [p d])."""
    if images.shape[1] % self.patch or images.shape[2] % self.patch:
      raise ConfigError(f"ViT: patches of {self.patch} px do not divide images of {images.shape[1]} x "
                        f"{images.shape[2]}; give a size that is a multiple of {self.patch}")
    sides = (self.patch, self.patch)
    patch = nn.Conv(width, sides, strides=sides, padding="VALID", use_bias=style.patch_bias, dtype=self.dtype,
                    name="patch")
    x, normal = tune.layer(patch, images.astype(self.dtype)), nn.initializers.normal(0.02)
    grid = x.shape[1:3]
    if self.has_variable("params", "positions"):  # the stored grid may differ from that of these images
      grid = self.get_variable("params", "positions").shape[:2]
    positions = self.param("positions", normal, (*grid, width), jnp.float32)
    x = x + resample(positions, x.shape[1:3]).astype(x.dtype)
    first = [self.param("token", normal, (1, width), jnp.float32)] if self.class_token else []
    if self.registers:
      first.append(self.param("registers", normal, (self.registers, width), jnp.float32))
    return x, jnp.concatenate(first).astype(x.dtype) if first else jnp.zeros((0, width), x.dtype)


class Block(nn.Module):
  """A pre-norm block of a transformer; `causal` for text."""
  heads: int
  norm: Any
  activation: str
  layer_scale: bool
  dropout: float
  drop_path: float
  dtype: Any
  tuning: Any
  causal: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    """Returns the tokens [b n d]."""
    layer, width = self.tuning.layer, x.shape[-1]
    dense = functools.partial(nn.Dense, dtype=self.dtype)

    def branch(y, scale):
      y = nn.Dropout(self.dropout)(y, deterministic=not train)
      if self.layer_scale:
        y = y * self.param(scale, nn.initializers.constant(1e-5), (width,), jnp.float32).astype(y.dtype)
      return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)

    y = layer(dense(3 * width, name="qkv"), layer(self.norm(name="norm1"), x))
    y = attention(y, self.heads, causal=self.causal)
    x = x + branch(layer(dense(width, name="proj"), y), "scale1")
    y = layer(dense(4 * width, name="fc1"), layer(self.norm(name="norm2"), x))
    y = branch(layer(dense(width, name="fc2"), ACTIVATIONS[self.activation](y)), "scale2")
    beside = self.tuning.beside_mlp(x, self.dtype)
    return x + y if beside is None else x + y + beside


def attention(qkv: Float[Array, "b n 3d"], heads: int, *, causal: bool = False) -> Float[Array, "b n d"]:
  """softmax(Q K^T / sqrt(d / heads)) V for each head, the softmax in float32 or better."""
  b, n, _ = qkv.shape
  query, key, value = jnp.moveaxis(qkv.reshape(b, n, 3, heads, -1), 2, 0)
  scores = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key,
                      preferred_element_type=jnp.promote_types(qkv.dtype, jnp.float32))
  if causal:
    scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(qkv.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(b, n, -1)


def resample(positions: Float[Array, "h w d"], grid: tuple[int, int]) -> Float[Array, "h2 w2 d"]:
  """Positions on another grid: bicubic with antialiasing, as in timm; unchanged if the grids are equal."""
  if tuple(positions.shape[:2]) == tuple(grid):
    return positions
  return jax.image.resize(positions, (*grid, positions.shape[-1]), "cubic", antialias=True)


def _inserted(x, insert, start, grid, plan):
  maps = insert(x[:, start:].reshape(x.shape[0], *grid, x.shape[-1]), plan)
  first = x[:, :start]
  if plan is not None:
    first = jnp.concatenate([first, first[plan.class_rows]])
  return jnp.concatenate([first, maps.reshape(maps.shape[0], -1, x.shape[-1])], axis=1)


def _check(module: ViT) -> None:
  for name, choices in (("size", SIZES), ("style", STYLES), ("pool", POOLS), ("activation", ACTIVATIONS)):
    value = getattr(module, name)
    if value not in choices and not (name == "activation" and value is None):
      raise ConfigError(f"ViT: {name} must be one of {', '.join(choices)}, got {value!r}"
                        f"{nearest(str(value), choices)}")
  width, depth, heads = module.shape()
  if width % heads:
    raise ConfigError(f"ViT: {heads} heads do not divide a width of {width}")
  if module.pool == "token" and not module.class_token:
    raise ConfigError("ViT: pool='token' needs class_token=True; give pool='mean' or pool='maps'")
  if module.insert is not None and depth < 2:
    raise ConfigError("ViT: an insert goes between the last two blocks, so depth must be at least 2")
