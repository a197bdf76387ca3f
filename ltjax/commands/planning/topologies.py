"""Devices by name: those that are here, virtual CPUs, and TPU slices that only the compiler knows."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from ltjax.errors import ConfigError, nearest

GiB = 2**30
PEAKS = ("flops", "bandwidth", "memory", "links")


class Chip(NamedTuple):
  """Published peaks of a chip.

  Args:
    flops: operations a second of bfloat16 matrix products.
    bandwidth: bytes a second of its memory.
    memory: bytes.
    links: bytes a second that it sends to other chips, over all links.
    cores: devices a chip.
    options: of the compiler's description.
  """

  flops: float
  bandwidth: float
  memory: float
  links: float
  cores: int = 1
  options: dict = {}


# v2, v3: Jouppi et al., A Domain-Specific Supercomputer for Training Deep Neural Networks, CACM 2020, table 3; links of
#   496 and 656 Gbit/s, four a chip.
# v4: Jouppi et al., TPU v4, ISCA 2023, table 4: six links of 50 GB/s; cloud.google.com/tpu/docs/v4.
# v5e, v5p, v6e: docs.cloud.google.com/tpu/docs/v5e, v5p and v6e. v6e's 3,200 Gbit/s are those of its own page.
TPUS = dict(
    v2=Chip(46e12, 700e9, 16 * GiB, 4 * 62e9, cores=2), v3=Chip(123e12, 900e9, 32 * GiB, 4 * 82e9, cores=2),
    v4=Chip(275e12, 1200e9, 32 * GiB, 300e9, options=dict(chip_config_name="megacore")),
    v5e=Chip(197e12, 819e9, 16 * GiB, 200e9), v5p=Chip(459e12, 2765e9, 95 * GiB, 600e9),
    v6e=Chip(918e12, 1600e9, 32 * GiB, 400e9))
SHAPES = dict.fromkeys(("v5e", "v6e"), ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"))
SHAPES |= dict.fromkeys(("v4", "v5p"), ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"))
SHAPES |= dict.fromkeys(("v2", "v3"), ("2x2", "4x4", "8x8", "8x16", "16x16"))
# NVIDIA's data sheets of the SXM cards: bf16 without sparsity, NVLink.
GPUS = {"H200": Chip(989e12, 4.8e12, 141e9, 450e9), "H100": Chip(989e12, 3.35e12, 80e9, 450e9),
        "A100-SXM4-80GB": Chip(312e12, 2.039e12, 80e9, 300e9), "A100-SXM4-40GB": Chip(312e12, 1.555e12, 40e9, 300e9)}
EXAMPLES = "v5e:4x4, v6e:16x16, v4:4x4x8, cpu:8, here"
# What libtpu otherwise asks a TPU machine's metadata server for, which is not there.
ENVIRONMENT = dict(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost",
                   TPU_MIN_LOG_LEVEL="3", ALLOW_MULTIPLE_LIBTPU_LOAD="1")


class Topology(NamedTuple):
  """Devices to compile for.

  `chip` has the peaks of one device, None where they are not known.
  """

  name: str
  mesh: jax.sharding.Mesh
  chip: Chip | None
  chips: int
  hosts: int

  @property
  def platform(self) -> str:
    """One of cpu, gpu and tpu."""
    platform = self.mesh.devices.flat[0].platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def is_tpu(text: str | None) -> bool:
  """Whether `text` names a TPU slice; raises a ConfigError where there is none of that shape, or no compiler here."""
  kind, _, shape = (text or "").strip().lower().removeprefix("tpu:").partition(":")
  if kind in TPUS:
    _check_slice(kind, shape)
  return kind in TPUS


def find(text: str) -> Topology:
  """The devices called `text`: "v5e:4x4" (also "tpu:v5e:4x4"), "cpu:8", or "here" for those that are present.

  Raises:
    ConfigError: an unknown name, or no compiler for it on this machine.
  """
  name = text.strip().lower().removeprefix("tpu:")
  kind, _, shape = name.partition(":")
  if name == "here":
    return _topology(name, jax.devices())
  if kind == "cpu":
    return _topology(name, _cpus(shape))
  if kind == "gpu":
    raise ConfigError(f"--topology: {text!r} needs such a GPU and its driver, because the compiler chooses kernels on "
                      "the card itself; on a machine with the GPUs write --topology=here")
  if kind not in TPUS:
    raise ConfigError(f"--topology: there is no {text!r}{nearest(kind, (*TPUS, 'cpu', 'here'))}; there are "
                      f"{', '.join(TPUS)} with a shape, cpu:N and here, as in {EXAMPLES}")
  return _topology(name, _tpus(kind, shape), TPUS[kind])


def _topology(name: str, devices, chip: Chip | None = None) -> Topology:
  # As `sharding.data_mesh` has them.
  devices = sorted(devices, key=lambda device: (device.process_index, device.id))
  if chip is None:
    chip = next((chip for kind, chip in GPUS.items() if kind.lower() in devices[0].device_kind.lower()), None)
  cores = chip.cores if chip else 1
  if chip:
    chip = chip._replace(**{key: getattr(chip, key) / cores for key in PEAKS})
  mesh = jax.sharding.Mesh(np.array(devices), ("data",))
  return Topology(name, mesh, chip, len(devices) // cores, len({device.process_index for device in devices}))


def _cpus(count: str) -> list:
  if not re.fullmatch("[1-9][0-9]{0,3}", count):
    raise ConfigError(f"--topology: expected cpu:N with N from 1 to 9999, got 'cpu:{count}'")
  with contextlib.suppress(RuntimeError):  # JAX has started already; it may have enough
    jax.config.update("jax_num_cpu_devices", int(count))
  devices = jax.devices("cpu")
  if len(devices) < int(count):
    raise ConfigError(f"--topology: JAX has started with {len(devices)} CPU devices and cannot have {count}; plan in a "
                      "process of its own")
  return devices[:int(count)]


def _check_slice(kind: str, shape: str) -> None:
  shapes = SHAPES[kind]
  if not re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*", shape) or shape.count("x") not in {text.count("x")
                                                                                        for text in shapes}:
    raise ConfigError(f"--topology: {kind} has no shape {shape!r}{nearest(shape, shapes)}; there are among others "
                      f"{', '.join(shapes)}")
  _check_compiler()


def _tpus(kind: str, shape: str) -> list:
  _check_slice(kind, shape)
  for key, value in ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  options = dict(TPUS[kind].options)
  if set(shape) <= set("1x"):
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **options).devices
  except Exception as error:
    raise ConfigError(f"--topology: the compiler refuses {kind}:{shape} ({' '.join(str(error).split())[:200]}); there "
                      f"are among others {', '.join(SHAPES[kind])}") from error


def _check_compiler() -> None:
  """Raises unless libtpu is installed, in the version that jax names."""
  wanted = next((found[1] for text in importlib.metadata.requires("jax") or ()
                 if (found := re.match(r"libtpu\s*==\s*([\d.]+)", text))), "").rstrip(".")
  how = f"install it with `pip install libtpu=={wanted}.*`, or ltjax with its extra `plan`"
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(f"--topology: the compiler for TPUs, libtpu, is not installed; {how}")
  version = importlib.metadata.version("libtpu")
  if wanted and not f"{version}.".startswith(f"{wanted}."):
    raise ConfigError(f"--topology: jax {jax.__version__} wants libtpu {wanted}, but {version} is installed; {how}")
