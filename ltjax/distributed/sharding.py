"""One mesh axis, "data": the state is replicated on every device, a batch is split over them."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
  """A mesh over all devices of all processes, sorted by process, because a TPU pod's devices are not."""
  return Mesh(np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id))), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Dimension `axis` split over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def local_rows(mesh: Mesh, size: int) -> slice:
  """The rows of an array of `size` rows that this process's devices hold when it is split."""
  spans = [rows.indices(size) for rows, in split(mesh).addressable_devices_indices_map((size,)).values()]
  return slice(min(start for start, _, _ in spans), max(stop for _, stop, _ in spans))


def place(rows, mesh: Mesh, axis: int = 0):
  """Arrays whose dimension `axis` is split over the devices; `rows` are this process's part of them."""
  if jax.process_count() == 1:
    return jax.device_put(rows, split(mesh, axis))
  with jax.transfer_guard("allow"):  # unlike device_put, this counts as an implicit transfer
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, split(mesh, axis)), rows)


def replicate(tree, mesh: Mesh):
  """Copies the arrays of `tree`, which are the same in all processes, to every device."""
  if jax.process_count() == 1:
    return jax.device_put(tree, replicated(mesh))

  def everywhere(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(everywhere(jax.random.key_data(leaf)))
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(leaf), leaf.shape)

  with jax.transfer_guard("allow"):
    return jax.tree.map(everywhere, tree)
