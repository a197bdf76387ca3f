"""Says whether a config fits on a TPU slice or other devices, how long it would take, and what for; runs nothing there.

python -m ltjax plan configs/gcl_inat.py --topology=v5e:4x4

The train and evaluation steps are compiled for the topology from shapes alone. Memory, operations, traffic and
collectives are the compiler's; times are estimated from them and the published peaks of the chip, and are the least
that is possible. TPUs need the compiler libtpu, which the extra `plan` installs on any x86 machine.
"""

import signal
import subprocess
import sys

from ltjax.commands.planning import here, topologies
from ltjax.config import load
from ltjax.errors import ConfigError, LtjaxError

_PROGRAM = "from ltjax.commands.planning import here; here.program()"


def main(arguments=None) -> None:
  """The command line. What is for TPUs runs in a process of its own, because their compiler may crash."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  if arguments and not arguments[0].startswith("-"):
    arguments[0] = f"--config={arguments[0]}"
  try:
    wanted = load.parse(arguments, here.OPTIONS, __doc__)["topology"]
    if not topologies.is_tpu(wanted):
      here.show(arguments)
      return
    code = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], check=False).returncode
    if code < 0:
      print(file=sys.stderr)  # its last line has no end
      raise ConfigError(f"--topology: the compiler for TPUs has crashed ({signal.Signals(-code).name}, with its own "
                        f"words on stderr) while it compiled for {wanted}; it may do so with very few images a chip: "
                        "try a larger batch_size or another --topology")
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    code = load.EXIT_BAD_INPUT
  except KeyboardInterrupt:
    code = 128 + signal.SIGINT
  if code:
    sys.exit(code)


if __name__ == "__main__":
  main(sys.argv[1:])
