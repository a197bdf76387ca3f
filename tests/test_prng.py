import doctest
import itertools

import jax
import numpy as np
import pytest

from ltjax.data import prng

NAMES = [("representation",), ("classifier",), ("representation", "init"), ("classifier", "init"), ("init",), ()]


def test_docstring_examples():
  assert doctest.testmod(prng).failed == 0


def test_streams_differ_by_name_and_by_seed():
  draws = {(seed, names): jax.random.bits(prng.stream(seed, *names), (4,)).tolist()
           for seed, names in itertools.product((0, 1, 2**31), NAMES)}
  assert len(set(map(tuple, draws.values()))) == len(draws)
  assert jax.random.bits(prng.stream(1, "classifier"), (4,)).tolist() == draws[1, ("classifier",)]


def test_a_stream_does_not_change_from_one_version_to_the_next():
  assert jax.random.key_data(prng.stream(0, "representation", "augment")).tolist() == [3045752964, 3352447155]
  assert jax.random.key_data(prng.stream(1, "representation")).tolist() == [1648845752, 2636337136]


def test_host_words_do_not_change_from_one_version_to_the_next():
  words = prng.host_words(0, "representation", "order", counter=0, size=4)
  assert words.dtype == np.uint64
  assert words.tolist() == [0xcb6d351893000589, 0xf2292eb0e8f7b0cb, 0xa6748c31994b1486, 0xbdd84efcc3ff72d0]
  words = prng.host_words(7, "classifier", "order", counter=12345, size=2)
  assert words.tolist() == [0xc73a2700b5828d5c, 0x1e725794e9b96b14]


def test_host_words_are_pure():
  first = prng.host_words(3, "order", counter=5, size=100)
  np.random.seed(0)
  prng.host_words(3, "order", counter=6, size=1000)
  np.testing.assert_array_equal(prng.host_words(3, "order", counter=5, size=100), first)
  np.testing.assert_array_equal(prng.host_words(3, "order", counter=5, size=7), first[:7])


def test_no_word_comes_twice_whatever_the_seed_the_name_and_the_counter():
  words = np.concatenate([
    prng.host_words(seed, *names, counter=counter, size=500)
    for seed, names, counter in itertools.product((0, 1), NAMES, (0, 1, 2, 3, 1000, 2**63))])
  assert len(np.unique(words)) == len(words) == 2 * len(NAMES) * 6 * 500


def test_host_uniform_is_the_top_53_bits():
  draws = prng.host_uniform(0, "representation", "order", counter=0, size=3)
  assert draws.dtype == np.float64
  assert draws.tolist() == [0.7946351227756168, 0.9459408933552982, 0.6502158757296395]


@pytest.mark.parametrize(("word", "draw"), [(0, 0.0), (2**64 - 1, 1 - 2**-53), (2**63, 0.5)])
def test_host_uniform_is_below_one_at_its_end(monkeypatch, word, draw):
  monkeypatch.setattr(prng, "host_words", lambda *args, **kwargs: np.array([word], np.uint64))
  assert prng.host_uniform(0, counter=0, size=1).tolist() == [draw]


def test_host_uniform_is_uniform():
  draws = np.sort(prng.host_uniform(0, "test", counter=0, size=100_000))
  assert 0 <= draws[0] < 1e-4 and 1 - 1e-4 < draws[-1] < 1
  # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand samples, and this sample is always the same.
  assert np.abs(draws - np.linspace(0, 1, len(draws))).max() < 1.95 / np.sqrt(len(draws))
