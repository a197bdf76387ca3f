"""The traits that losses, adjustments and heads declare are true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.losses.traits import has, stateful
from ltjax.models import heads

TRAITS = {
  "arcface": {"needs_angles": True}, "kps_angular": {"needs_angles": True}, "gcl_angular": {"needs_angles": True},
  "discriminative_centroids": {"of_batch": True, "takes": "distances"},
  "hybrid_contrastive": {"of_batch": True, "rows_of": "contrastive_views"},
  "lade": {"of_batch": True}, "prior_lade": {"of_batch": True},
  "softmax_equalization": {"drops_columns": True},
  "seesaw": {"state": losses.seesaw.state},
}
LOGITS = jnp.asarray(np.random.RandomState(0).randn(6, 5), jnp.float32)
LABELS = np.array([0, 1, 2, 3, 4, 0])
COUNTS = np.array([1000, 50, 7, 2, 1])


@pytest.mark.parametrize("name", losses.__all__)
def test_every_function_declares_exactly_its_traits(name):
  function = getattr(losses, name)
  traits = "of_batch", "drops_columns", "needs_angles", "rows_of", "state", "takes"
  found = {trait: getattr(function, trait) for trait in traits if hasattr(function, trait)}
  assert found == TRAITS.get(name, {})


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "class_balanced_focal", "lade", "prior_lade"])
def test_only_the_losses_of_a_batch_depend_on_its_other_rows(name):
  loss = getattr(losses, name)
  more = (COUNTS,) if hasattr(loss, "of_batch") else ()
  alone = jnp.concatenate([loss(LOGITS[i:i + 1], LABELS[i:i + 1], *more) for i in range(6)])
  assert np.allclose(loss(LOGITS, LABELS, *more), alone, atol=1e-5) != hasattr(loss, "of_batch")


def test_the_state_of_seesaw_counts_the_drawn_labels_with_their_weights_inside_jit():
  state = losses.seesaw.state
  assert state.argument == "seen_counts"
  seen = state.init(5)
  np.testing.assert_array_equal(seen, np.zeros(5, np.float32))
  update = jax.jit(state.update)
  seen = update(update(seen, LOGITS, LABELS, 1.0), LOGITS, LABELS[::-1], 0.25)
  np.testing.assert_array_equal(seen, np.float32([2.5, 1.25, 1.25, 1.25, 1.25]))
  assert np.isfinite(losses.seesaw(LOGITS, LABELS, **{state.argument: seen})).all()


def test_decorators_mark_the_function_itself():
  def loss(logits, labels, *, mean):
    return logits.sum(axis=1) - mean

  marked = stateful("mean", init=lambda classes: jnp.zeros(()), update=lambda state, *rest: state + 1)(loss)
  assert marked is loss and loss.state.argument == "mean" and loss.state.update(loss.state.init(3), None) == 1
  assert has(of_batch=True)(loss) is loss and loss.of_batch


HEADS = [
  (heads.Linear(5), "logits", True),
  (heads.Cosine(5), "cosines", False),
  (heads.NormalizedLinear(5, scale=2.0), "logits", True),
  (heads.NormalizedLinear(5, scale=2.0, normalize_features=True), "logits", False),
  (heads.OLTR(5), "logits", True),
  (heads.ProjectedLinear(5), "logits", True),
  (heads.WeightNorm(5), "logits", True),
  (heads.LearnableScale(5), "logits", True),
  (heads.LearnableScale(5, cosine=True), "scaled_cosines", False),
  (heads.DisAlign(5), "logits", True),
  (heads.DisAlign(5, cosine=True), "scaled_cosines", False),
  (heads.TDE(5), "logits", False),
  (heads.CAMC(5, scale=2.0, threshold=8, class_counts=tuple(COUNTS.tolist()), num_prototypes=1), "logits", False),
]


@pytest.mark.parametrize(("head", "gives", "keeps_norm"), HEADS, ids=lambda value: getattr(value, "name", None))
def test_heads_declare_their_output_and_whether_it_depends_on_the_norm_of_the_features(head, gives, keeps_norm):
  kind = type(head)
  assert getattr(head, "gives", "logits") == gives
  assert getattr(head, "keeps_norm", True) == keeps_norm
  traits = "takes_maps", "wants_prototypes", "batch_statistics", "projects"
  assert [name for name in traits if getattr(head, name, False)] == {
      heads.CAMC: ["takes_maps", "wants_prototypes"], heads.TDE: ["batch_statistics"],
      heads.ProjectedLinear: ["projects"], heads.OLTR: ["takes_maps", "projects"]}.get(kind, [])
  features = jax.random.normal(jax.random.key(0), (3, 2, 2, 8) if getattr(head, "takes_maps", False) else (3, 8))
  variables = head.init(jax.random.key(1), features)
  assert ("batch_stats" in variables) == getattr(head, "batch_statistics", False)
  plain, longer = (head.apply(variables, size * features) for size in (1.0, 100.0))
  if "DisAlign" not in kind.__name__:  # its confidence reads the features beside the wrapped head
    assert np.allclose(plain, longer, rtol=1e-3) != keeps_norm
  if gives == "cosines":
    assert np.abs(plain).max() <= 1 + 1e-6
  fields = kind.__dataclass_fields__
  assert not {"gives", "keeps_norm", "takes_maps", "wants_prototypes", "batch_statistics"} & set(fields)
