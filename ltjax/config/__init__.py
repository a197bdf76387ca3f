"""The config of a run: command line -> ConfigDict (`load`) -> bound blocks (`spec`) -> checked (`check`)."""

from ml_collections import ConfigDict

from ltjax.config import check, spec


def parse(config: ConfigDict) -> spec.RunSpec:
  """A config as a checked `RunSpec`; raises a `ConfigError` for the first entry that could not run."""
  run = spec.parse(config)
  check.check(run)
  return run


notes = check.notes
