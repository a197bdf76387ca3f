"""Every random number of a run, derived from one seed: by name, then by step. Nothing random is checkpointed."""

import hashlib
import zlib

import jax
import numpy as np


def stream(seed: int, *names: str) -> jax.Array:
  """A device key for `names` under `seed`; fold the step into it to draw.

  >>> a, b = stream(0, "representation", "augment"), stream(0, "classifier", "augment")
  >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
  False
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32("/".join(names).encode()))


def host_words(seed: int, *names: str, counter: int, size: int) -> np.ndarray:
  """`size` uniform uint64 words on the host, a pure function of (seed, names, counter).

  Raw Philox words, because numpy promises those bits for ever while it may change what its distributions make of them.

  >>> bool((host_words(0, "order", counter=3, size=4) == host_words(0, "order", counter=3, size=4)).all())
  True
  """
  digest = hashlib.blake2b("/".join((str(seed), *names)).encode(), digest_size=16).digest()
  # The counter goes into the highest word: 2**192 draws separate one step from the next.
  return np.random.Philox(key=np.frombuffer(digest, "<u8"), counter=[0, 0, 0, counter]).random_raw(size)


def host_uniform(seed: int, *names: str, counter: int, size: int) -> np.ndarray:
  """`size` float64 draws from U[0, 1), a pure function of (seed, names, counter)."""
  return (host_words(seed, *names, counter=counter, size=size) >> np.uint64(11)) * 2.0**-53
