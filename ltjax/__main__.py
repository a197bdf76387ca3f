"""Dispatches `python -m ltjax NAME ...` and the console script `ltjax NAME ...` to `ltjax.commands`."""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from typing import NoReturn

from ltjax import commands
from ltjax.distributed import signals

_NOT_COMMANDS = ("moved",)  # modules of the folder that are not commands


def names() -> list[str]:
  """The names of the commands."""
  found = [module.name for module in pkgutil.iter_modules(commands.__path__) if not module.ispkg]
  return sorted(name for name in found if name not in _NOT_COMMANDS)


def usage() -> str:
  """The text of --help, one line per command."""
  lines = []
  for name in names():
    source = importlib.util.find_spec(f"ltjax.commands.{name}").origin
    with open(source, encoding="utf-8") as file:
      lines.append(f"  {name:11} {file.readline().strip().strip(chr(34))}")
  return "\n".join(("usage: ltjax COMMAND ...", "", *lines, "", "`ltjax COMMAND --help` says more. Training: "
                    "python -m ltjax.main --config=configs/gcl_digits.py --workdir=runs/digits"))


def main(arguments: list[str] | None = None) -> None:
  """Runs a command."""
  name, *rest = arguments or sys.argv[1:] or ["--help"]
  if name in ("--help", "-h", "help"):
    print(usage())
    return
  if name not in names():
    near = difflib.get_close_matches(name, names(), n=1)
    print(f"error: there is no command {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}; there are "
          f"{', '.join(names())}", file=sys.stderr)
    sys.exit(2)
  importlib.import_module(f"ltjax.commands.{name}").main(rest)


def program() -> NoReturn:
  """`main` as a program: it ends with the command's exit code."""
  code = 0
  try:
    main()
  except SystemExit as end:
    code = end.code or 0
  except BrokenPipeError:  # the reader of the output has seen enough
    pass
  signals.leave(code)


if __name__ == "__main__":
  program()
