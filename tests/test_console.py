"""A program whose output is closed runs to its end with the right exit code."""

import os
import subprocess
import sys

import pytest

from ltjax.distributed import console
from tests.processes import ROOT

PROGRAM = """
import sys
from ltjax.distributed import console
console.protect()
console.protect()
from tqdm import tqdm
for number in tqdm(range(3), mininterval=0):
  print("gr\\u00f6\\u00dfer \\udcff", number, flush=number == 1)
print("x" * 10**6)
print("in words", file=sys.stderr)
with open(sys.argv[1], "w") as file:
  file.write("done")
sys.exit(75)
"""


def run(path, **streams) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, "-c", PROGRAM, path], cwd=ROOT, timeout=60, **streams,
                        env=os.environ | dict(PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0"))


def closed_pipe() -> int:
  reading, writing = os.pipe()
  os.close(reading)
  return writing


@pytest.mark.parametrize("name", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("end", ["closed", "full"])
def test_output_that_is_closed_during_the_run(tmp_path, name, end):
  stream = closed_pipe() if end == "closed" else os.open("/dev/full", os.O_WRONLY)
  streams = {kind: stream if name in (kind, "both") else subprocess.PIPE for kind in ("stdout", "stderr")}
  found = run(tmp_path / "file", **streams)
  os.close(stream)
  assert found.returncode == 75 and (tmp_path / "file").read_text() == "done", found
  assert name == "both" or b"Error" not in (found.stderr or b"")


def test_output_that_is_closed_at_the_start(tmp_path):
  command = 'exec "$@" >&- 2>&-'
  found = subprocess.run(["sh", "-c", command, "sh", sys.executable, "-c", PROGRAM, tmp_path / "file"], cwd=ROOT)
  assert found.returncode == 75 and (tmp_path / "file").read_text() == "done"


def test_output_arrives_with_characters_outside_its_encoding_escaped(tmp_path):
  found = run(tmp_path / "file", capture_output=True)
  assert found.returncode == 75
  assert found.stdout.splitlines()[0] == b"gr\\xf6\\xdfer \\udcff 0" and len(found.stdout) > 10**6
  assert b"in words" in found.stderr and b"3/3" in found.stderr


def test_a_lossy_stream_is_the_stream_otherwise(capsys):
  made = console.Lossy(sys.stdout)
  print("a", file=made)
  made.writelines(["b", "c"])
  assert made.encoding == sys.stdout.encoding and capsys.readouterr().out == "a\nbc"


def test_a_command_whose_reader_has_seen_enough_ends_in_silence():
  stream = closed_pipe()
  found = subprocess.run([sys.executable, "-m", "ltjax", "--help"], cwd=ROOT, stdout=stream, stderr=subprocess.PIPE)
  os.close(stream)
  assert (found.returncode, found.stderr) == (0, b"")


def test_what_a_failed_save_leaves_behind_is_not_shown_and_other_faults_are():
  class Found:
    exc_value = None

  shown = []
  for words in ("Event loop is closed", "no number"):
    Found.exc_value = RuntimeError(words)
    console._unraisable(Found, show=lambda found: shown.append(str(found.exc_value)))
  assert shown == ["no number"]
