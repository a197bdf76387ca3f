"""Parts from outside: a user's package trains by configuration alone, and a missing trait is one sentence."""

import importlib
import sys

import jax
import numpy as np
import optax
import pytest

from ltjax import recipes
from ltjax.config import parse
from ltjax.errors import ConfigError
from ltjax.train import Interrupted
from tests import tiny

pytestmark = [pytest.mark.usefixtures("package"), pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="bits are compared")]

PARTS = '''
"""What a user might bring."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ltjax.losses.traits import stateful

ANSWER = 42


def _follow(mean, logits, labels, weight):
  """A moving average of the batch's label frequencies."""
  found = jnp.mean(jax.nn.one_hot(labels, logits.shape[-1]), axis=0)
  return mean + 0.1 * weight * (found - mean)


@stateful("frequency", init=lambda num_classes: jnp.full(num_classes, 1 / num_classes), update=_follow)
def tracked_cross_entropy(logits, labels, frequency, *, strength: float = 1.0):
  """Cross entropy of logits that the label frequencies seen so far have moved."""
  moved = jax.nn.log_softmax(logits + strength * jnp.log(frequency + 1e-3))
  return -jnp.take_along_axis(moved, labels[:, None], axis=-1)[:, 0]


class TokenNet(nn.Module):
  """Patches, a class token that attends to them, Dropout and no BatchNorm; gives features [b d]."""

  width: int = 8
  dropout: float = 0.2

  @nn.compact
  def __call__(self, images, *, train):
    patches = nn.Conv(self.width, (4, 4), strides=4, name="patches")(images)
    patches = patches.reshape(len(images), -1, self.width)
    token = self.param("token", nn.initializers.normal(0.02), (self.width,))
    attended = jnp.einsum("bp,bpd->bd", nn.softmax(patches @ token), patches)
    x = nn.Dropout(self.dropout, deterministic=not train)(token + attended)
    return nn.LayerNorm(name="norm")(x)


def dim(images, key, *, strongest: float = 0.5):
  """Each image darker by a factor of its own."""
  factors = jax.random.uniform(key, (len(images), 1, 1, 1), minval=strongest, maxval=1.0)
  return (images * factors).astype(images.dtype)


def softened(class_counts, *, power: float = 0.5):
  """Probabilities between instance and class-balanced sampling."""
  mass = np.asarray(class_counts, float) ** power
  return mass / mass.sum()


def signed(learning_rate: float, *, decay: float = 0.9):
  """Steps along the sign of the averaged gradient."""
  return optax.chain(optax.ema(decay), optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates)),
                     optax.scale(-learning_rate))


def without_labels(logits):
  return logits[:, 0]


def anything_goes(logits, labels, **options):
  return logits[:, 0]


def rateless(*, decay: float = 0.9):
  return optax.ema(decay)


class Trainless(nn.Module):
  @nn.compact
  def __call__(self, images):
    return images


def no_module(images, *, train):
  return images
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
  """A new package in a folder on the path."""
  folder = tmp_path_factory.mktemp("outside")
  (folder / "myparts").mkdir()
  (folder / "myparts" / "__init__.py").write_text("")
  (folder / "myparts" / "parts.py").write_text(PARTS)
  (folder / "myparts" / "broken.py").write_text("import there_is_no_such_library\n")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield
  for name in [name for name in sys.modules if name.split(".")[0] == "myparts"]:
    del sys.modules[name]


def two_stages(**overrides):
  """Digits with every part from outside: one stage trains everything, the next a new head."""
  stage = dict(
      epochs=1, batch_size=128, lr=dict(name="cosine", base=0.02), loss=dict(
          name="myparts.parts:tracked_cross_entropy", strength=dict(name="linear", start=0.5, end=1.0)),
      sampler=dict(name="myparts.parts:softened", power=0.25), optimizer=dict(name="myparts.parts:signed", decay=0.5))
  given = dict(
      augment=(dict(name="myparts.parts:dim", strongest=0.6), dict(name="random_crop", padding=1)),
      stages=("representation", "classifier"), representation=recipes.stage(**stage),
      classifier=recipes.stage(**stage, train=("head/.*",)))
  return tiny.config("ce_digits", backbone=dict(name="myparts.parts:TokenNet", width=8), steps_per_call=1,
                     **given | overrides)


def test_a_run_of_outside_parts_stopped_and_resumed_is_the_straight_run(tmp_path):
  config = two_stages()
  with tiny.shared_compilations():
    straight = tiny.run(config, tmp_path / "straight")
    for stop_after in (3, 4):  # in the first stage, and in the second
      with pytest.raises(Interrupted):
        tiny.run(config, tmp_path / "stopped", stop_after=stop_after)
    stopped = tiny.run(config, tmp_path / "stopped")
  assert stopped["final"] == straight["final"]
  states = {}
  for name, stage in tiny.stages(config).items():
    assert tiny.log(tmp_path / "stopped", name) == tiny.log(tmp_path / "straight", name)
    one, other = (tiny.saved(stage, tmp_path / folder) for folder in ("straight", "stopped"))
    tiny.assert_trees_equal(one, other)
    states[name] = one
  first, second = states["representation"], states["classifier"]
  assert set(first.loss_state) == {"frequency"} and not first.batch_stats
  np.testing.assert_allclose(first.loss_state["frequency"].sum(), 1, rtol=1e-5)
  assert (first.loss_state["frequency"] != np.float32(0.1)).any()
  tiny.assert_trees_equal(first.params["backbone"], second.params["backbone"])
  assert (first.params["head"]["kernel"] != second.params["head"]["kernel"]).any()


def test_every_outside_part_takes_effect():
  """Without any one of them the first step is another."""
  def after(**overrides):
    stage = tiny.stages(two_stages(**overrides))["representation"]
    state, finite = stage.train_steps[1](stage.make_state(stage.init()), stage.data, *stage.batches(0, 1))
    assert finite
    return stage, jax.device_get(state)

  stage, state = after()
  start = jax.device_get(stage.init())
  moved = [np.abs(new - old) for new, old in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(start["params"]), strict=True)]
  np.testing.assert_allclose(np.concatenate([step[step > 0].ravel() for step in moved]), 0.02, rtol=1e-3)  # its signs
  for overrides in (dict(augment=()), dict(backbone__dropout=0.0),
                    dict(representation__loss=dict(name="cross_entropy"))):
    assert float(after(**overrides)[1].window["loss"]) != float(state.window["loss"]), overrides
  plain = tiny.stages(two_stages(representation__sampler=dict(name="instance")))["representation"]
  assert (plain.order.batch(0) != stage.order.batch(0)).any()


@pytest.mark.parametrize("rule", ["optax:lion", "optax:rmsprop"])
def test_an_optimiser_of_optax_is_used_by_its_name(rule):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, representation__optimizer=dict(name=rule))
  stage = tiny.stages(config)["representation"]
  grads = {"kernel": np.ones(3, np.float32)}
  call = getattr(optax, rule.partition(":")[2])(1.0)
  expected, _ = call.update(grads, call.init(grads), grads)
  found, _ = stage.optimizer.transform.update(grads, stage.optimizer.transform.init(grads), grads)
  tiny.assert_trees_equal(found, expected)


LOSS, OPTIMIZER = "representation__loss", "representation__optimizer"


@pytest.mark.parametrize(("key", "name", "message"), [
    (LOSS, "myprats.parts:x", r"representation.loss.name: module 'myprats.parts' of 'myprats.parts:x' cannot be "
                              r"imported \(ModuleNotFoundError: No module named 'myprats'\); .*PYTHONPATH"),
    (LOSS, "myparts.broken:x", r"representation.loss.name: module 'myparts.broken' of .* cannot be imported "
                               r"\(ModuleNotFoundError: No module named 'there_is_no_such_library'\)"),
    (LOSS, "myparts.parts:tracked_cross_entrpy", "representation.loss.name: module 'myparts.parts' has no "
                                                 r".*did you mean 'tracked_cross_entropy'\?"),
    (LOSS, "myparts.parts:ANSWER", "representation.loss.name: 'myparts.parts:ANSWER' is of type int, expected a"),
    (LOSS, "myparts.parts:anything_goes", r"representation.loss.name: .* takes \*\*keywords, in which a misspelt"),
    (LOSS, "myparts.parts:without_labels", "representation.loss.name: 'myparts.parts:without_labels' takes no "
                                           "'labels', which it would be called with"),
    ("backbone", "myparts.parts:Trainless", "backbone.name: 'myparts.parts:Trainless' has no 'train' in __call__"),
    ("backbone", "myparts.parts:no_module", "backbone.name: 'myparts.parts:no_module' is not a flax.linen module"),
    (OPTIMIZER, "myparts.parts:rateless", "representation.optimizer.name: 'myparts.parts:rateless' takes no "
                                          "'learning_rate' or 'lr', which it would be called with"),
    ("representation__sampler", "myparts.parts:rateless", "sampler.name: .* takes no 'class_counts'"),
    ("augment", "myparts.parts:rateless", r"augment\[0\].name: 'myparts.parts:rateless' takes no 'images'"),
])
def test_a_missing_trait_of_an_outside_part_is_one_sentence(key, name, message):
  block = dict(name=name)
  config = tiny.config("ce_digits", **({"backbone": tiny.ONE_CONV} | {key: (block,) if key == "augment" else block}))
  with pytest.raises(ConfigError, match=message) as info:
    parse(config)
  assert "\n" not in str(info.value)


@pytest.mark.parametrize(("options", "message"), [
    (dict(strenght=1.0), r"representation.loss.strenght: .* has no such argument \(did you mean 'strength'\?\)"),
    (dict(frequency=0.5), "representation.loss.frequency: .* has no such argument"),  # the run supplies it
    (dict(strength="much"), "representation.loss.strength: expected a number")])
def test_the_arguments_of_an_outside_part_are_checked_as_ours_are(options, message):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, representation__loss=dict(
      name="myparts.parts:tracked_cross_entropy", **options))
  with pytest.raises(ConfigError, match=message):
    parse(config)
