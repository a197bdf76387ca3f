import numpy as np
import pytest

from ltjax import stage as stages
from ltjax.config import spec
from ltjax.data import prng, samplers
from ltjax.data.order import Order
from ltjax.schedules import Clock

COUNTS = np.array([30, 400, 1, 250, 7])  # in no order, one class with a single image
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


def sampler(block, counts):
  return stages.sampler(spec.sampler(block, "test.sampler"), "test", counts)


def order(name="instance", *, labels=LABELS, classes=5, batch_size=64, epochs=4, seed=0, stage="representation",
          **hyper):
  draws = sampler(dict(name=name, **hyper), np.bincount(labels, minlength=classes))
  return Order(labels, classes, batch_size=batch_size, epochs=epochs, seed=seed, stage=stage, samplers=[draws])


def epoch_of(found, epoch):
  return np.concatenate([found.batch(epoch * found.steps_per_epoch + place) for place in range(found.steps_per_epoch)])


def check_frequencies(found, probabilities, total):
  """No class deviates from its expected count by more than five standard deviations."""
  bound = 5 * np.sqrt(total * probabilities * (1 - probabilities)) + 1
  assert (np.abs(found - total * probabilities) < bound).all(), (found, total * probabilities)


EVERY = ["instance", "class_balanced", "class_aware", "cben", "progressive"]
HYPER = {"progressive": dict(progress=dict(name="linear"))}


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_depends_on_seed_stage_and_step_only(name):
  hyper = HYPER.get(name, {})
  first = order(name, **hyper)
  batches = [first.batch(step) for step in range(first.steps)]
  assert first.steps == 4 * (len(LABELS) // 64) == len(batches)
  for batch in batches:
    assert batch.dtype == np.int32
    assert batch.shape == (64,)
    assert batch.min() >= 0 and batch.max() < len(LABELS)
  again = order(name, **hyper)
  for step in (first.steps - 1, 0, 17, 17, 5, 30, 6):  # backwards, skipping, twice
    np.testing.assert_array_equal(again.batch(step), batches[step])
  np.testing.assert_array_equal(order(name, **hyper).batch(20), batches[20])
  for other in (order(name, seed=1, **hyper), order(name, stage="classifier", **hyper)):
    assert all((other.batch(step) != batches[step]).any() for step in (0, 20))
  assert len({batch.tobytes() for batch in batches}) == len(batches)


def test_the_order_does_not_change_from_one_version_to_the_next():
  labels = np.array([0, 1, 0, 2, 0, 1, 0, 0])
  assert order(labels=labels, classes=3, batch_size=4).batch(1).tolist() == [5, 3, 0, 1]
  assert order("class_balanced", labels=labels, classes=3, batch_size=8).batch(1).tolist() == [7, 4, 1, 1, 5, 3, 3, 6]


@pytest.mark.parametrize("batch_size", [1, 64, 100, 687, 688])
def test_an_epoch_of_instance_sampling_is_without_replacement(batch_size):
  found = order(batch_size=batch_size, epochs=2)
  visited = [epoch_of(found, epoch) for epoch in range(2)]
  for examples in visited:
    assert len(np.unique(examples)) == len(examples) == len(LABELS) - len(LABELS) % batch_size
  assert (visited[0] != visited[1]).any()
  if batch_size == 100:
    assert len(np.union1d(*visited)) > len(visited[0])  # the next epoch may bring the examples that one leaves out


def test_the_permutation_is_uniform():
  found = order(labels=np.zeros(4, int), classes=1, batch_size=4, epochs=4000)
  places = np.stack([found.batch(step) for step in range(4000)])
  for place in places.T:
    check_frequencies(np.bincount(place, minlength=4), np.full(4, 1 / 4), 4000)
  assert (np.abs(np.corrcoef(places.T)[np.triu_indices(4, 1)] + 1 / 3) < 0.06).all()  # without replacement: -1/(n-1)


@pytest.mark.parametrize(("name", "expected"), [
  ("class_balanced", np.full(5, 0.2)),
  ("cben", samplers.cben(COUNTS)),
  ("reverse", samplers.reverse(COUNTS)),
])
def test_classes_come_by_their_probabilities_and_their_examples_uniformly(name, expected):
  found = order(name, batch_size=500, epochs=100)
  drawn = np.concatenate([found.batch(step) for step in range(100)])
  check_frequencies(np.bincount(LABELS[drawn], minlength=5), expected, len(drawn))
  examples = np.bincount(drawn, minlength=len(LABELS))
  check_frequencies(examples, (expected / COUNTS)[LABELS], len(drawn))
  for c in range(5):
    inside = examples[c == LABELS]
    chi_square = ((inside - inside.mean()) ** 2 / inside.mean()).sum()
    assert chi_square <= (len(inside) - 1) + 5 * np.sqrt(2 * (len(inside) - 1)), c


def test_draws_are_independent_of_their_index_and_their_neighbour():
  found = order("class_balanced", batch_size=1000, epochs=50)
  classes = np.stack([LABELS[found.batch(step)] for step in range(50)])
  check_frequencies(np.bincount((5 * classes[:, :-1] + classes[:, 1:]).ravel(), minlength=25), np.full(25, 1 / 25),
                    classes[:, 1:].size)
  check_frequencies(np.bincount((5 * classes[:-1] + classes[1:]).ravel(), minlength=25), np.full(25, 1 / 25),
                    classes[1:].size)


def test_a_progressive_sampler_goes_from_the_data_to_balance_with_the_epochs():
  found = order("progressive", batch_size=344, epochs=201, progress=dict(name="linear"))
  assert found.steps_per_epoch == 2
  probabilities = sampler(dict(name="progressive", progress=dict(name="linear")), COUNTS)
  for epoch, progress in ((0, 0.0), (100, 0.5), (200, 1.0)):
    expected = samplers.progressive(COUNTS, progress=progress)
    np.testing.assert_allclose(probabilities(Clock(epoch * 2 + 1, 2, 201)), expected, rtol=1e-12)
  for epochs in (range(20), range(181, 201)):
    drawn = np.concatenate([epoch_of(found, epoch) for epoch in epochs])
    expected = np.mean([samplers.progressive(COUNTS, progress=epoch / 200) for epoch in epochs], axis=0)
    check_frequencies(np.bincount(LABELS[drawn], minlength=5), expected, len(drawn))


def test_instance_sampling_is_the_permutation():
  assert sampler(dict(name="instance"), COUNTS) is None


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_are_examples_too(monkeypatch, draw):
  monkeypatch.setattr(prng, "host_uniform", lambda *names, counter, size: np.full(size, draw))
  for count in (1, 2, 3, 5, 8, 1000, 4097):
    labels = np.repeat(np.arange(3), [2, 1, count])
    found = order("square_root", labels=labels, classes=3, batch_size=1).batch(0)
    assert found.tolist() == [len(labels) - 1 if draw else 0]


@pytest.mark.parametrize(("draw", "drawn"), [(0.0, 1), (0.5, 2), (1 - 2.0**-53, 2)])
def test_a_class_without_probability_is_never_drawn(monkeypatch, draw, drawn):
  monkeypatch.setattr(prng, "host_uniform", lambda *names, counter, size: np.full(size, draw))
  found = Order(np.arange(4), 4, batch_size=2, epochs=1, seed=0, stage="classifier",
                samplers=[lambda clock: np.array([0.0, 0.5, 0.5, 0.0])])
  assert found.batch(0).tolist() == [drawn, drawn]


def test_a_large_set_costs_two_integer_arrays():
  classes, examples = 8142, 437_513  # iNaturalist 2018
  counts = np.geomspace(1, 1000, classes)
  counts = np.maximum(1, (counts * examples / counts.sum()).astype(int))
  counts[-1] += examples - counts.sum()
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), counts))
  for name in ("cben", "instance", "class_aware"):
    found = order(name, labels=labels, classes=classes, batch_size=256)
    for step in range(2):  # instance sampling draws its permutation once an epoch
      found.batch(step)
    held = [value for value in vars(found._streams[0]).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in held) < 2 * 4 * examples + 64 * classes


# -- the cycle of the class-aware sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize("samples_per_class", [1, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_cycle_is_one_sequence_however_it_is_cut(samples_per_class, batch_size):
  hyper = dict(name="class_aware", epochs=100, samples_per_class=samples_per_class)
  whole = order(batch_size=688, **hyper).batch(0)
  found = order(batch_size=batch_size, **hyper)
  pieces = [found.batch(step) for step in reversed(range(-(-688 // batch_size)))]
  np.testing.assert_array_equal(np.concatenate(pieces[::-1])[:688], whole)


@pytest.mark.parametrize("samples_per_class", [1, 4])
def test_in_every_round_each_class_has_one_turn_in_a_fresh_order(samples_per_class):
  found = order("class_aware", batch_size=5 * samples_per_class, epochs=200, samples_per_class=samples_per_class)
  turns = np.stack([LABELS[found.batch(step)].reshape(5, samples_per_class) for step in range(2000)])
  assert (turns == turns[:, :, :1]).all()  # the examples of a turn are of one class
  assert (np.sort(turns[:, :, 0], axis=1) == np.arange(5)).all()
  for place in turns[:, :, 0].T:
    check_frequencies(np.bincount(place, minlength=5), np.full(5, 1 / 5), 2000)


def test_in_a_class_no_example_repeats_before_all_have_come():
  found = order("class_aware", batch_size=20, epochs=100)
  drawn = np.concatenate([found.batch(step) for step in range(450)])
  for c, count in enumerate(COUNTS):
    inside = drawn[LABELS[drawn] == c]
    assert len(inside) == 4 * 450
    laps = inside[: len(inside) // count * count].reshape(-1, count)
    assert (np.sort(laps, axis=1) == np.flatnonzero(c == LABELS)).all()
    assert count == 1 or (laps[0] != laps[1]).any()  # in a fresh order


def test_the_order_of_a_cycle_does_not_change_from_one_version_to_the_next():
  labels = np.array([0, 1, 0, 2, 0, 1, 0, 0])
  found = order("class_aware", labels=labels, classes=3, batch_size=8, samples_per_class=2)
  assert [found.batch(step).tolist() for step in (0, 1)] == [[3, 3, 5, 1, 6, 2, 3, 3], [0, 4, 1, 5, 3, 3, 5, 1]]


# -- the second batch of two-branch networks ---------------------------------------------------------------------------


def branched(first="instance", second="reverse", **overrides):
  counts = np.bincount(LABELS)
  samplers = [sampler(dict(name=name), counts) for name in (first, second)]
  return Order(LABELS, 5, **(dict(batch_size=64, epochs=40, seed=0, stage="representation", samplers=samplers)
                             | overrides))


@pytest.mark.parametrize(("first", "second"), [
    ("instance", "reverse"), ("instance", "instance"), ("cben", "cben"), ("class_aware", "class_aware")])
def test_branches_are_two_streams_each_with_its_sampler(first, second):
  found, alone = branched(first, second), order(first, epochs=40)
  steps = (30, 0, 7, 7, 399)
  for step in steps:
    batch = found.batch(step)
    assert (batch.shape, batch.dtype) == ((64, 2), np.int32)
    np.testing.assert_array_equal(batch[:, 0], alone.batch(step))  # the first does not know of the second
    np.testing.assert_array_equal(branched(first, second).batch(step), batch)
    assert (batch[:, 0] != batch[:, 1]).mean() > 0.5
  for other in (dict(seed=1), dict(stage="classifier")):
    assert all((branched(first, second, **other).batch(step) != found.batch(step)).any() for step in steps)


def test_the_second_branch_is_drawn_by_its_own_probabilities():
  found = branched()
  drawn = np.stack([found.batch(step) for step in range(found.steps)]).reshape(-1, 2)
  check_frequencies(np.bincount(LABELS[drawn[:, 1]], minlength=5), samplers.reverse(COUNTS), len(drawn))
  first = drawn[: found.steps_per_epoch * 64, 0]
  assert len(np.unique(first)) == len(first)  # still a permutation
  pairs = np.bincount(5 * LABELS[drawn[:, 0]] + LABELS[drawn[:, 1]], minlength=25).reshape(5, 5)
  expected = np.outer(COUNTS / COUNTS.sum(), samplers.reverse(COUNTS))
  check_frequencies(pairs.ravel(), expected.ravel(), len(drawn))  # and independent of the second


@pytest.mark.parametrize("batch_size", [1, 64, 100, len(LABELS) - 1, len(LABELS)])
def test_the_examples_that_no_batch_of_an_epoch_takes_are_counted(batch_size):
  made = order("instance", batch_size=batch_size)
  epoch = np.concatenate([made.batch(step) for step in range(made.steps_per_epoch)])
  assert made.dropped == len(LABELS) - len(np.unique(epoch)) == len(LABELS) % batch_size
  assert order("class_balanced", batch_size=batch_size).dropped == 0
  assert order("class_aware", batch_size=batch_size).dropped == 0
