"""Long-tailed visual recognition in JAX and Flax."""

import sys

from ltjax.commands import moved

__version__ = "0.2.0"

sys.meta_path.append(moved.Finder())
if sys.argv[:1] == ["-m"]:  # the interpreter is about to run a module of this package
  moved.refuse(sys.orig_argv)
