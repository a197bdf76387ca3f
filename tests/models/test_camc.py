"""CAMC's functions and head: the direct form, golden values, identities, crops, and refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, models
from ltjax.errors import ConfigError
from ltjax.models import camc, heads
from tests import goldens

COUNTS = (500, 7, 300, 90, 30, 200, 60)
NAMES = ("maps", "kernel", "prototypes", "fuse_kernel", "fuse_bias")
GOLDEN = ("F", "W", "prototypes", "fuse_w", "fuse_b")
both_precisions = pytest.mark.parametrize("precision", ["float64", "float32"])


@functools.cache
def arrays(b=3, h=4, w=5, d=6, c=7, t=4, k=2, n=3, seed=0, hidden=False):
  """Random arguments of `calibrated_scores` in float64, by name."""
  rng = np.random.default_rng(seed)
  shapes = dict(maps=(b, h, w, d), kernel=(d, c), prototypes=(t, k, d), fuse_kernel=(t, n, n, k), fuse_bias=(t,))
  found = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
  found["tail"] = rng.permutation(c)[:t]
  if hidden:
    found["hidden"] = rng.standard_normal((t, n, n, k, k)), rng.standard_normal((t, k))
  return found


def direct(maps, kernel, prototypes, fuse_kernel, fuse_bias, tail, *, scale, hidden=None, normalize_prototypes=False):
  """Equations 4, 5 and 8 one by one in NumPy, with every embedding made."""

  def unit(x, axis):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)

  def convolved(x, kernel):  # [b h w k], [n n k j]
    b, h, w, _ = x.shape
    n = len(kernel)
    framed = np.zeros((b, h + n - 1, w + n - 1, x.shape[-1]))
    framed[:, n // 2:n // 2 + h, n // 2:n // 2 + w] = x
    return np.stack([[np.tensordot(framed[:, y:y + n, x:x + n], kernel, 3) for x in range(w)] for y in range(h)]
                    ).transpose(2, 0, 1, 3)

  embeddings = np.repeat(maps.mean((1, 2))[:, None], kernel.shape[1], axis=1)
  for row, c in enumerate(tail):
    phi, own = (unit(prototypes[row], -1), unit(maps, -1)) if normalize_prototypes else (prototypes[row], maps)
    responses = own @ phi.T
    if hidden:
      responses = np.maximum(convolved(responses, hidden[0][row]) + hidden[1][row], 0)
    fused = convolved(responses, fuse_kernel[row][..., None]) + fuse_bias[row]
    embeddings[:, c] = ((1 + 1 / (1 + np.exp(-fused))) * maps).mean((1, 2))
  return scale * np.einsum("bcd,dc->bc", unit(embeddings, -1), unit(kernel, 0))


def close(ours, theirs, precision, rtol32=1e-5):
  assert ours.dtype == precision
  rtol = 1e-9 if precision == "float64" else rtol32
  np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


# -- the pure functions ------------------------------------------------------------------------------------------------


@both_precisions
@goldens.parametrize("paper_camc")
def test_golden(case, hyper, inputs, outputs, precision):
  def loss(given):
    scores = camc.calibrated_scores(*(given[name] for name in GOLDEN), inputs["tail"], scale=hyper["g"])
    return losses.mean(losses.cross_entropy(scores, inputs["labels"])), scores

  with jax.enable_x64(precision == "float64"):
    given = {name: jnp.asarray(inputs[name], precision) for name in GOLDEN}
    (value, scores), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    weights = camc.reinforcement(*(given[name] for name in GOLDEN if name != "W")).transpose(0, 3, 1, 2)
    maps = camc.class_activation_maps(given["F"], given["W"])
  close(scores, outputs["scores"], precision)
  close(value, outputs["loss"], precision)
  close(weights, 1 + 1 / (1 + np.exp(-outputs["fused_map"])), precision)
  close(maps, np.einsum("bhwd,dc->bhwc", inputs["F"], inputs["W"]), precision)
  one_place = inputs["F"].shape[1:3] == (1, 1)
  for name in GOLDEN:
    if one_place and name not in ("F", "W"):  # there the embedding's length is all that these change
      assert np.abs(outputs[f"grad_{name}"]).max() < 1e-15 and np.abs(gradients[name]).max() < 1e-5
    else:
      close(gradients[name], outputs[f"grad_{name}"], precision, rtol32=1e-4)


@pytest.mark.parametrize("options", [
  {}, {"h": 1, "w": 1}, {"h": 2, "w": 2}, {"n": 1}, {"n": 5}, {"k": 1}, {"t": 7}, {"hidden": True},
  {"normalize_prototypes": True}, {"hidden": True, "n": 1, "normalize_prototypes": True}])
def test_equals_the_direct_form(options):
  options = dict(options)
  form = {name: options.pop(name) for name in ("normalize_prototypes",) if name in options}
  given = dict(arrays(**options))
  form["hidden"] = given.pop("hidden", None)
  with jax.enable_x64(True):
    found = camc.calibrated_scores(**given, scale=16.0, **form)
  close(found, direct(**given, scale=16.0, **form), "float64")


def test_never_makes_the_embeddings():
  given = arrays(b=16, h=7, w=7, d=1024, c=60, t=50, k=3)
  shapes = {name: jax.ShapeDtypeStruct(value.shape, "float32") for name, value in given.items() if name != "tail"}

  def loss(trained, maps):
    return camc.calibrated_scores(maps, **trained, tail=given["tail"], scale=16.0).sum()

  maps = shapes.pop("maps")
  compiled = jax.jit(jax.grad(loss)).lower(shapes, maps).compile()
  responses, embeddings = 4 * 16 * 50 * 49 * 3, 4 * 16 * 50 * 49 * 1024
  assert embeddings > 300 * responses
  assert 0 < compiled.memory_analysis().temp_size_in_bytes < 12 * responses + 4 * maps.size


def test_shared_fusion_is_the_same_fusion_for_all():
  given = dict(arrays())
  given |= dict(fuse_kernel=given["fuse_kernel"][:1], fuse_bias=given["fuse_bias"][:1])
  repeated = given | {name: np.repeat(given[name], 4, axis=0) for name in ("fuse_kernel", "fuse_bias")}
  np.testing.assert_allclose(camc.calibrated_scores(**given, scale=16.0),
                             camc.calibrated_scores(**repeated, scale=16.0), rtol=1e-5)


def test_the_order_of_the_classes_does_not_matter():
  given, order = arrays(), np.array([3, 0, 4, 1, 2, 6, 5])
  moved = given | dict(kernel=given["kernel"][:, order], tail=np.argsort(order)[given["tail"]])
  with jax.enable_x64(True):
    np.testing.assert_allclose(camc.calibrated_scores(**moved, scale=16.0),
                               np.asarray(camc.calibrated_scores(**given, scale=16.0))[:, order], rtol=1e-9)
  rows = np.array([2, 0, 3, 1])
  shuffled = given | {name: given[name][rows] for name in ("prototypes", "fuse_kernel", "fuse_bias", "tail")}
  with jax.enable_x64(True):
    np.testing.assert_allclose(camc.calibrated_scores(**shuffled, scale=16.0),
                               camc.calibrated_scores(**given, scale=16.0), rtol=1e-9)


@pytest.mark.parametrize("tail", ["none", "zero weights"])
def test_without_a_tail_or_fusion_it_is_the_normalised_classifier(tail):
  given = dict(arrays())
  if tail == "none":
    given |= {name: given[name][:0] for name in ("prototypes", "fuse_kernel", "fuse_bias", "tail")}
  else:  # every position has the same weight, which preserves the direction
    given["fuse_kernel"] = np.zeros_like(given["fuse_kernel"])
  with jax.enable_x64(True):
    head = heads.NormalizedLinear(7, scale=16.0, normalize_features=True)
    plain = head.apply({"params": {"kernel": jnp.asarray(given["kernel"])}}, jnp.asarray(given["maps"].mean((1, 2))))
    np.testing.assert_allclose(camc.calibrated_scores(**given, scale=16.0), plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_maps_and_vectors_are_finite_with_finite_gradients(dtype):
  given = {name: jnp.asarray(value, dtype if name == "maps" else None) for name, value in arrays().items()}
  tail = given.pop("tail")

  @jax.jit
  def run(given):
    scores, vjp = jax.vjp(lambda given: camc.calibrated_scores(**given, tail=tail, scale=16.0), given)
    return scores, vjp(jnp.ones_like(scores))

  for zeros in ((), ("maps",), ("kernel",), ("prototypes",), NAMES):
    found = given | {name: jnp.zeros_like(given[name]) for name in zeros}
    scores, gradients = run(found)
    assert scores.dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((scores, gradients)))
    assert (np.abs(scores) <= 16.001).all()
  huge = run(given | dict(maps=given["maps"] * 1e4, fuse_bias=jnp.full(4, -1e9)))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(huge))


def test_activation_maps_average_to_the_logits():
  given = arrays()
  maps = camc.class_activation_maps(given["maps"].astype(np.float32), given["kernel"].astype(np.float32))
  np.testing.assert_allclose(maps.mean((1, 2)), given["maps"].mean((1, 2)) @ given["kernel"], rtol=1e-4, atol=1e-5)


# -- the head ----------------------------------------------------------------------------------------------------------


def head(**options):
  return heads.CAMC(**dict(num_classes=7, scale=16.0, threshold=100, num_prototypes=3, class_counts=COUNTS) | options)


def test_parameters_and_initial_values():
  params = head(threshold=400, class_counts=(500, 300) * 150, num_classes=300).init(
      jax.random.key(0), jnp.zeros((1, 2, 2, 64)))["params"]
  assert jax.tree.map(jnp.shape, params) == dict(
      kernel=(64, 300), prototypes=(150, 3, 64), fuse_kernel=(150, 3, 3, 3), fuse_bias=(150,))
  assert not any(params[name].any() for name in ("prototypes", "fuse_bias", "fuse_kernel"))
  np.testing.assert_allclose([params["kernel"].mean(), params["kernel"].std()], [0, 1 / 8], atol=5e-3)
  two = head(fusion_layers=2, shared_fusion=True, fusion_size=1).init(jax.random.key(0), jnp.zeros((1, 2, 2, 5)))
  assert jax.tree.map(jnp.shape, two["params"]) == dict(
      kernel=(5, 7), prototypes=(4, 3, 5), fuse_kernel=(1, 1, 1, 3), fuse_bias=(1,), hidden_kernel=(1, 1, 1, 3, 3),
      hidden_bias=(1, 3))


@pytest.mark.parametrize("options", [
  {}, {"normalize_prototypes": True}, {"fusion_layers": 2}, {"shared_fusion": True}, {"fusion_size": 5}])
@pytest.mark.parametrize("train", [False, True])
def test_scores_are_the_function_of_the_parameters(options, train):
  found, maps = head(**options), jax.random.normal(jax.random.key(1), (2, 3, 3, 6)).astype(jnp.bfloat16)
  shapes = jax.eval_shape(found.init, jax.random.key(0), maps)["params"]
  keys = jax.random.split(jax.random.key(2), len(shapes))
  params = {name: jax.random.normal(key, leaf.shape) for key, (name, leaf) in zip(keys, shapes.items(), strict=True)}
  # The first convolution takes the responses divided by the mean squared length of the class's prototypes.
  squares = np.square(params["prototypes"]).sum(-1).mean(-1)[:, None, None, None]
  squares = np.ones_like(squares) if options.get("normalize_prototypes") else squares
  given, hidden = dict(params), None
  if "hidden_kernel" in params:
    hidden = params["hidden_kernel"] / squares[..., None], params["hidden_bias"]
  else:
    given["fuse_kernel"] = params["fuse_kernel"] / squares
  form = dict(hidden=hidden, normalize_prototypes=options.get("normalize_prototypes", False))
  expected = camc.calibrated_scores(maps, *(given[name] for name in NAMES[1:]), np.array([1, 3, 4, 6]), scale=16.0,
                                    **form)
  apply = jax.jit(lambda params, maps: found.apply(dict(params=params), maps, train=train))
  scores = apply(params, maps)
  assert scores.dtype == jnp.float32 and found.tail.tolist() == [1, 3, 4, 6]
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.reinforcement(params, maps),
                             camc.reinforcement(maps, *(given[name] for name in NAMES[2:]), **form), rtol=1e-5)
  apply(params, 2 * maps)
  assert apply._cache_size() == 1


@pytest.mark.parametrize(("options", "words"), [
  (dict(threshold=7), ("threshold 7 leaves no tail class", "smallest class has 7")),
  (dict(threshold=0), ("threshold 0 leaves no tail class",)),
  (dict(num_prototypes=91), ("num_prototypes 91", "largest has 90", "threshold 100")),
  (dict(fusion_size=2), ("fusion_size", "2")),
  (dict(fusion_layers=3), ("fusion_layers", "3")),
  (dict(pick="best"), ("pick", "random, first, kmeans", "'best'")),
])
def test_refuses(options, words):
  with pytest.raises(ConfigError) as info:
    head(**options)
  assert all(word in str(info.value) for word in words) and "\n" not in str(info.value)


def test_every_class_may_be_tail_and_some_may_have_fewer_images_than_prototypes():
  assert head(threshold=1e9, num_prototypes=90).tail.tolist() == list(range(7))


# -- crops -------------------------------------------------------------------------------------------------------------


@goldens.parametrize("paper_camcpp_crops")
def test_boxes_golden(case, hyper, inputs, outputs):
  boxes = camc.crop_boxes(hyper["S"], hyper["M"])
  assert np.issubdtype(boxes.dtype, np.integer)
  np.testing.assert_array_equal(boxes, outputs["boxes"])


@pytest.mark.parametrize("size", [7, 32, 224])
@pytest.mark.parametrize("grid", [1, 2, 3, 4, 5])
def test_windows_are_the_boxes_enlarged(size, grid):
  image = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
  windows = camc.crop_windows(size, grid)
  for row, column in np.ndindex(grid, grid):
    y0, y1, x0, x1 = camc.crop_boxes(size, grid)[row, column]
    expected = jax.image.resize(image[y0:y1, x0:x1], (size, size), "linear")
    np.testing.assert_allclose(windows[row] @ image @ windows[column].T, expected, atol=1e-4)
  if grid == 1:
    np.testing.assert_array_equal(windows[0], np.eye(size))


@pytest.mark.parametrize("grid", [0, -1])
def test_a_grid_below_one_is_refused(grid):
  with pytest.raises(ConfigError, match=f"got {grid}"):
    camc.crop_boxes(32, grid)


def classifier(grid, **options):
  return models.Classifier(backbone=models.ResNetCIFAR(depth=8, widths=(4, 4, 8)), head=head(crops=grid, **options))


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(1), (4, 12, 8, 3))


@pytest.fixture(scope="module")
def variables(images):
  found = classifier(2).init(jax.random.key(0), images, train=False)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
      jnp.shape, classifier(None).init(jax.random.key(0), images, train=False))
  return found


@pytest.mark.parametrize("grid", [1, 3])
def test_the_head_sees_the_features_of_the_crops(images, variables, grid):
  model = classifier(grid)
  maps = jax.jit(lambda v, x: model.apply(v, x, method="maps"))(variables, images)
  assert maps.shape == (4, grid, grid, 8) and maps.dtype == jnp.float32
  rows, columns = camc.crop_boxes(12, grid)[:, 0, :2], camc.crop_boxes(8, grid)[:, 0, :2]
  backbone = {kind: tree["backbone"] for kind, tree in variables.items()}
  alone = jax.jit(lambda crop: model.backbone.apply(backbone, crop, train=False).mean((1, 2)))
  for (y, (y0, y1)), (x, (x0, x1)) in ((a, b) for a in enumerate(rows) for b in enumerate(columns)):
    crop = jax.image.resize(images[:, y0:y1, x0:x1], images.shape, "linear")
    np.testing.assert_allclose(maps[:, y, x], alone(crop), rtol=1e-3, atol=1e-4)
  scores, features = model.apply(variables, images, train=False)
  np.testing.assert_allclose(features, maps.mean((1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      scores, model.head.apply({"params": variables["params"]["head"]}, maps), rtol=1e-4, atol=1e-3)


def test_one_crop_is_the_full_image(images, variables):
  (scores, features), (_, expected) = (
      classifier(grid).apply(variables, images, train=False) for grid in (1, None))
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
  assert scores.shape == (4, 7)


def test_statistics_move_once_per_crop_in_training_and_never_in_evaluation(images, variables):
  def moved(grid, train):
    _, updated = jax.jit(lambda v: classifier(grid).apply(v, images, train=train, mutable=["batch_stats"]))(variables)
    return updated["batch_stats"]["backbone"]["stem_norm"]["mean"]

  before = variables["batch_stats"]["backbone"]["stem_norm"]["mean"]
  np.testing.assert_array_equal(moved(2, False), before)
  np.testing.assert_allclose(moved(1, True), moved(None, True), rtol=1e-4, atol=1e-6)
  crops = [jax.image.resize(images[:, y0:y1, x0:x1], images.shape, "linear") for (y0, y1), (x0, x1) in (
      (y, x) for y in camc.crop_boxes(12, 2)[:, 0, :2] for x in camc.crop_boxes(8, 2)[:, 0, :2])]
  expected = before
  for crop in crops:
    conv = nn.Conv(4, (3, 3), padding=1, use_bias=False).apply(
        {"params": variables["params"]["backbone"]["stem_conv"]}, crop)
    expected = 0.9 * expected + 0.1 * conv.mean((0, 1, 2))
  np.testing.assert_allclose(moved(2, True), expected, rtol=1e-3, atol=1e-6)


def test_gradients_reach_the_backbone_through_the_crops(images, variables):
  def loss(params):
    return classifier(2).apply({**variables, "params": params}, images, train=False)[0][:, 0].sum()

  gradients = jax.jit(jax.grad(loss))(variables["params"])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  assert gradients["backbone"]["stem_conv"]["kernel"].any()


def test_crops_are_a_loop_but_on_a_cpu_and_give_the_same(images, variables, monkeypatch):
  found = {}
  for backend, loops in (("cpu", 0), ("gpu", 1)):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
    lowered = jax.jit(lambda v, x: classifier(2).apply(v, x, train=True, mutable=["batch_stats"])).lower(
        variables, images)
    assert lowered.as_text().count("stablehlo.while") == loops
    found[backend] = lowered.compile()(variables, images)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found["cpu"], found["gpu"])
