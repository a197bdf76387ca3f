import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = ("local.sh", "slurm.sh", "tpu.sh", "kubernetes.sh")
ARGUMENTS = ["--config=configs/gcl_digits.py:10,a=b", "--workdir=/work/it's \"mine\" $HOME $(x) $$ \\ & *", ""]
RUN = ["python", "-m", "ltjax.main", *ARGUMENTS]
AFTER = ["--", *ARGUMENTS]
KUBERNETES = ["--name=lt", "--image=an/image:1", "--nodes=2", "--storage-class=nfs"]
GPUS, TPUS = ["--gpus-per-node=4"], ["--tpus-per-node=4", "--tpu-accelerator=v5", "--tpu-topology=4x4"]
TPU = ["--name=lt", "--zone=z"]


def launch(script, *args, path=None, **env):
  """Runs a script; programs in the folder `path` go before all others."""
  path = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {}
  return subprocess.run([LAUNCH / script, *args], capture_output=True, text=True, timeout=20,
                        env={**os.environ, "JAX_PLATFORMS": "cpu", **path, **env})


def shown(script, *args, **env):
  """The commands that a script would run, as lists of words."""
  own = args.index("--") if "--" in args else len(args)
  result = launch(script, *args[:own], "--dry-run", *args[own:], **env)
  assert result.returncode == 0, result.stderr
  return [shlex.split(line) for line in result.stdout.splitlines()]


def program(folder, name, text):
  """Puts a bash script of that name into the folder."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
  (folder / name).chmod(0o755)
  return folder


def split_input(text):
  """The command and the standard input of a printed here-document."""
  command, rest = text.split(" <<'END_OF_INPUT'\n")
  return shlex.split(command), rest.removesuffix("\nEND_OF_INPUT\n")


# All of them


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_bash_reads_it(script):
  assert subprocess.run(["bash", "-n", LAUNCH / script]).returncode == 0


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
  if shellcheck is None:
    pytest.skip("shellcheck is not installed")
  result = subprocess.run([shellcheck, "-x", *sorted(LAUNCH.glob("*.sh"))], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_first_comment(script):
  result = launch(script, "--help")
  assert result.returncode == 0 and result.stderr == ""
  assert result.stdout.startswith("Runs ltjax.main") and "--dry-run" in result.stdout and "set -" not in result.stdout


@pytest.mark.parametrize("script, args, words", [
    ("local.sh", ["--proceses", "2"], "no option --proceses"),
    ("local.sh", ["--processes"], "--processes needs a value"),
    ("local.sh", ["--processes=2.5", *AFTER], "--processes is '2.5'"),
    ("local.sh", AFTER, "--processes is missing"),
    ("local.sh", ["--processes=2", "--config=c.py"], "no option --config"),
    ("local.sh", ["--processes=2", "--", "--config=c.py"], "--workdir=..."),
    ("slurm.sh", ["--nodes=1", "--gpus-per-node=1", *AFTER], "--time is missing"),
    ("slurm.sh", ["logs"], "number of the job"),
    ("tpu.sh", ["start", *TPU], "no command 'start'"),
    ("tpu.sh", TPU, "A command is missing"),
    ("tpu.sh", ["create", *TPU], "--type is missing"),
    ("tpu.sh", ["create", *TPU, "--spot=yes"], "--spot takes no value"),
    ("tpu.sh", ["run", *TPU], "--config=..."),
    ("kubernetes.sh", ["apply", "--name=Lt"], "--name is 'Lt'"),
    ("kubernetes.sh", ["apply", *KUBERNETES, *AFTER], "--gpus-per-node is missing"),
    ("kubernetes.sh", ["apply", *KUBERNETES, *TPUS[:2], *AFTER], "--tpu-topology is missing"),
    ("kubernetes.sh", ["apply", *KUBERNETES, *GPUS, "--", "--config=c.py", "--workdir=runs/x"], "must be under /work"),
])
def test_a_wrong_command_line_is_refused_in_one_sentence(script, args, words):
  result = launch(script, *args)
  assert result.returncode == 2 and result.stdout == ""
  assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"{script}: ") and words in result.stderr


# local.sh

READY = 'echo "ready $LTJAX_PROCESS_ID"\n'
SAVES = """for name in INT TERM USR1 HUP; do trap "count=\\$((count + 1)); got=$name" $name; done
echo "ready $LTJAX_PROCESS_ID"
for ((i = 0; i < 500; i++)); do [[ -z $got ]] && sleep 0.02 || break; done
sleep 0.3
echo "saved $LTJAX_PROCESS_ID after $count $got"
exit 75"""


def start(path, processes):
  """Starts local.sh in its own session and returns it with its processes' ids, once all are ready."""
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
  # Tests started in the background ignore SIGINT, and no shell can trap a signal that it was started to ignore.
  started = subprocess.Popen(
      ["env", "--default-signal=INT,HUP", LAUNCH / "local.sh", f"--processes={processes}", *AFTER], env=env, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
  lines = [started.stdout.readline() for _ in range(processes)]
  assert sorted(re.sub(r"^\[\d+\] ", "", line) for line in lines) == [f"ready {i}\n" for i in range(processes)]
  pids = {}
  for i in range(processes):
    pids[i] = int((path / f"pid{i}").read_text())
  return started, pids


def stub_python(tmp_path, text):
  return program(tmp_path / "bin", "python", f'echo $$ > "${{0%/*}}/pid$LTJAX_PROCESS_ID"\n{text}')


def alive(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
  except FileNotFoundError:
    return False


def test_local_shows_one_command_a_process():
  commands = shown("local.sh", "--processes=2", "--coordinator-port", "2345", "--devices-per-process=3", *AFTER)
  assert [line[line.index("env"):] for line in commands] == [
      ["env", "LTJAX_COORDINATOR=localhost:2345", "LTJAX_PROCESSES=2", f"LTJAX_PROCESS_ID={i}", "JAX_NUM_CPU_DEVICES=3",
       *RUN] for i in range(2)]


def test_local_gives_each_process_its_gpus(tmp_path):
  path = program(tmp_path, "nvidia-smi", 'for i in 0 1 2 3; do echo "GPU $i: A (UUID: GPU-$i)"; done')
  def visible(*args, **env):
    lines = shown("local.sh", *args, *AFTER, path=path, **{"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "", **env})
    return [[word for word in line if "VISIBLE" in word or "CPU" in word] for line in lines]
  assert visible("--processes=2") == [["CUDA_VISIBLE_DEVICES=0"], ["CUDA_VISIBLE_DEVICES=1"]]
  assert visible("--processes=2", "--devices-per-process=2") == [["CUDA_VISIBLE_DEVICES=0,1"],
                                                                 ["CUDA_VISIBLE_DEVICES=2,3"]]
  assert visible("--processes=2", CUDA_VISIBLE_DEVICES="3,1") == [["CUDA_VISIBLE_DEVICES=3"],
                                                                  ["CUDA_VISIBLE_DEVICES=1"]]
  assert visible("--processes=2", JAX_PLATFORMS="cpu") == [["JAX_NUM_CPU_DEVICES=1"]] * 2
  result = launch("local.sh", "--processes=5", *AFTER, path=path, JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES="")
  assert result.returncode == 2 and "5 GPUs are needed, this machine has 4" in result.stderr


def test_local_runs_them_with_their_arguments_and_prefixes_all_but_the_first(tmp_path):
  path = stub_python(tmp_path, 'sleep "0.$LTJAX_PROCESS_ID"\nprintf "%s\\n" "$LTJAX_COORDINATOR" "$@"\necho "oh" >&2')
  result = launch("local.sh", "--processes=3", *AFTER, path=path)
  assert result.returncode == 0
  lines = result.stdout.splitlines()
  address = lines[0]
  assert re.fullmatch(r"localhost:\d+", address)
  said = [address, *RUN[1:]]
  assert lines == said + [f"[1] {line}" for line in [*said, "oh"]] + [f"[2] {line}" for line in [*said, "oh"]]
  assert result.stderr == "oh\n"


@pytest.mark.parametrize("codes, expected", [
    ((0, 0, 0), 0), ((0, 75, 0), 75), ((75, 75, 75), 75), ((75, 69, 0), 69), ((69, 74, 69), 74), ((75, 1, 2), 1),
])
def test_local_exit_code(tmp_path, codes, expected):
  path = stub_python(tmp_path, f"codes=({' '.join(map(str, codes))})\nexit ${{codes[LTJAX_PROCESS_ID]}}")
  result = launch("local.sh", "--processes=3", *AFTER, path=path)
  assert result.returncode == expected
  assert result.stderr.splitlines() == [f"local.sh: process {i} ended with exit code {code}"
                                        for i, code in enumerate(codes) if code]


@pytest.mark.parametrize("number, whole_group", [
    (signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGUSR1, False), (signal.SIGHUP, False),
    (signal.SIGINT, True)])
def test_local_passes_a_signal_to_all_once_and_waits(tmp_path, number, whole_group):
  # Ctrl-C in a terminal signals the complete group; a second signal would end ltjax.main at once
  started, pids = start(stub_python(tmp_path, SAVES), 3)
  (os.killpg if whole_group else os.kill)(started.pid, number)
  out, _ = started.communicate(timeout=10)
  assert started.returncode == 75
  name = number.name.removeprefix("SIG")
  said = [f"saved {i} after 1 {name}" for i in range(3)]
  assert sorted(out.splitlines()) == sorted([said[0], f"[1] {said[1]}", f"[2] {said[2]}"])
  assert not any(alive(pid) for pid in pids.values())


def test_local_gives_all_processes_the_same_secret(tmp_path):
  path = stub_python(tmp_path, 'echo "$LTJAX_TOKEN"')
  runs = [launch("local.sh", "--processes=2", *AFTER, path=path, **env) for env in ({}, {}, dict(LTJAX_TOKEN="mine"))]
  tokens = [{line.removeprefix("[1] ") for line in run.stdout.splitlines()} for run in runs]
  assert [len(found) for found in tokens] == [1, 1, 1] and tokens[0] != tokens[1] and tokens[2] == {"mine"}
  assert re.fullmatch("[0-9a-f]{32}", *tokens[0])


def test_local_waits_for_the_others_of_a_killed_process(tmp_path):
  path = stub_python(tmp_path, READY + """
for ((i = 0; i < 500; i++)); do [[ ! -e "${0%/*}/gone" ]] && sleep 0.02 || break; done
echo noticed
exit 69""")
  started, pids = start(path, 2)
  os.kill(pids[0], signal.SIGKILL)
  with pytest.raises(subprocess.TimeoutExpired):
    started.wait(timeout=0.5)
  assert alive(pids[1])
  (path / "gone").touch()
  out, err = started.communicate(timeout=10)
  assert started.returncode == 137 and out == "[1] noticed\n"  # the cause, not the 69 that follows from it
  assert "process 0 ended with exit code 137" in err


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_local_killed_leaves_no_process(tmp_path):
  started, pids = start(stub_python(tmp_path, SAVES), 2)
  started.kill()
  started.communicate(timeout=10)
  deadline = time.monotonic() + 5
  while any(alive(pid) for pid in pids.values()) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(alive(pid) for pid in pids.values())


# slurm.sh

SLURM = ["--nodes=2", "--gpus-per-node=4", "--time=24:00:00", "--partition=p"]


def test_slurm_shows_the_job():
  result = launch("slurm.sh", *SLURM, "--dry-run", *AFTER)
  command, script = split_input(result.stdout)
  assert command == ["sbatch", "--job-name=ltjax", "--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4",
                     "--cpus-per-task=4", "--time=24:00:00", "--signal=USR1@120", "--requeue", "--open-mode=append",
                     "--partition=p"]
  lines = script.splitlines()
  assert "/dev/urandom" in lines[1] and lines[2:4] == ["export LTJAX_TOKEN", "code=0"]
  srun = shlex.split(lines[4].removesuffix(" || code=$?"))
  assert srun == ["srun", "--cpus-per-task=4", "--label", "--kill-on-bad-exit=0", "--wait=0", *RUN]


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_requeues_only_stopped_jobs(tmp_path, code):
  program(tmp_path, "sbatch", "SLURM_JOB_ID=7 bash")
  program(tmp_path, "srun", f'printf "%s\\n" "$@"; echo "${{#LTJAX_TOKEN}}" >&2\nexit {code}')
  result = launch("slurm.sh", *SLURM, *AFTER, path=program(tmp_path, "scontrol", 'echo "scontrol $*"'))
  assert result.returncode == code and result.stderr == "32\n"  # as long as a token is
  lines = result.stdout.splitlines()
  assert lines[4:4 + len(RUN)] == RUN
  assert lines[4 + len(RUN):] == (["scontrol requeue 7"] if code == 75 else [])


def test_slurm_shows_how_to_follow_and_stop():
  assert shown("slurm.sh", "logs", "12") == [["tail", "--lines=100", "--follow=name", "--retry", "slurm-12.out"]]
  assert shown("slurm.sh", "stop", "12") == [["scontrol", "update", "JobId=12", "Requeue=0"],
                                             ["scancel", "--signal=TERM", "12"]]


# tpu.sh

GCLOUD = ["gcloud", "compute", "tpus", "tpu-vm"]


@pytest.mark.parametrize("kind, version", [
    ("v5litepod-64", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e"),
    ("v4-8", "tpu-ubuntu2204-base")])
def test_tpu_create(kind, version):
  made = [*GCLOUD, "create", "lt", f"--accelerator-type={kind}"]
  assert shown("tpu.sh", "create", *TPU, "--type", kind) == [[*made, f"--version={version}", "--zone=z"]]
  assert shown("tpu.sh", "create", *TPU, "--type", kind, "--version=v", "--spot", "--project=p") == [
      [*made, "--version=v", "--spot", "--zone=z", "--project=p"]]


def test_tpu_copy_sends_the_commit_and_installs_it():
  folder, archive, send, install = shown("tpu.sh", "copy", *TPU)
  root = str(LAUNCH.parent)
  assert folder == ["mkdir", "-p", f"{root}/build"]
  assert archive == ["git", "-C", root, "archive", "--format=tar.gz", "--output=build/ltjax.tar.gz", "HEAD"]
  assert send == [*GCLOUD, "scp", f"{root}/build/ltjax.tar.gz", "lt:ltjax.tar.gz", "--worker=all", "--zone=z"]
  assert install[:7] == [*GCLOUD, "ssh", "lt", "--worker=all"]
  on_worker = install[7].removeprefix("--command=")
  assert "tar -xzf ltjax.tar.gz -C ltjax" in on_worker and "'.[tpu]'" in on_worker
  assert subprocess.run(["bash", "-n", "-c", on_worker]).returncode == 0


def test_tpu_run_brings_the_arguments_through_every_shell(tmp_path):
  program(tmp_path, "gcloud", 'for word; do [[ $word != --command=* ]] || line=${word#*=}; done\n'
                              'HOME=/home/u USER=u bash -c "$line"')
  result = launch("tpu.sh", "run", *TPU, *AFTER, path=program(tmp_path, "sudo", 'printf "%s\\n" "$@"'),
                  LTJAX_TOKEN="secret")
  assert result.returncode == 0
  lines = result.stdout.splitlines()
  assert lines[:3] == ["systemd-run", "--unit=ltjax", "--collect"] and "--setenv=LTJAX_TOKEN=secret" in lines
  assert {"--property=SuccessExitStatus=75", "--uid=u", "--working-directory=/home/u/ltjax"} < set(lines)
  main = lines[lines.index("/home/u/ltjax/.venv/bin/python") + 1:]
  assert [word.replace("$$", "$") for word in main] == RUN[1:]  # as systemd reads them
  assert shown("tpu.sh", "run", *TPU, *AFTER)[0][:7] == [*GCLOUD, "ssh", "lt", "--worker=all"]


def test_tpu_logs_stop_delete():
  assert shown("tpu.sh", "logs", *TPU, "--worker=3") == [[
      *GCLOUD, "ssh", "lt", "--worker=3", "--command=sudo journalctl --unit=ltjax --lines=100 --follow --output=cat",
      "--zone=z"]]
  assert shown("tpu.sh", "stop", *TPU) == [[
      *GCLOUD, "ssh", "lt", "--worker=all",
      "--command=if systemctl is-active --quiet ltjax; then sudo systemctl stop ltjax; fi", "--zone=z"]]
  assert shown("tpu.sh", "delete", *TPU) == [[*GCLOUD, "delete", "lt", "--zone=z"]]


# kubernetes.sh


def rendered(*args):
  result = launch("kubernetes.sh", "render", *KUBERNETES, *args, *AFTER, LTJAX_TOKEN="secret")
  assert result.returncode == 0, result.stderr
  assert "${" not in result.stdout
  return list(yaml.safe_load_all(result.stdout))


def test_kubernetes_manifest():
  claim, jobset = rendered(*GPUS)
  assert claim["kind"] == "PersistentVolumeClaim" and claim["metadata"]["name"] == "lt"
  assert claim["spec"] == dict(accessModes=["ReadWriteMany"], storageClassName="nfs",
                               resources=dict(requests=dict(storage="1Ti")))
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert jobset["spec"]["failurePolicy"] == dict(maxRestarts=3, rules=[dict(
      name="preempted", action="RestartJobSetAndIgnoreMaxRestarts", onJobFailureReasons=["PodFailurePolicy"])])
  workers, = jobset["spec"]["replicatedJobs"]
  job = workers["template"]["spec"]
  assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 2, 2, 0)
  disruption, codes = job["podFailurePolicy"]["rules"]
  assert disruption["onPodConditions"] == [dict(type="DisruptionTarget", status="True")]
  assert codes["onExitCodes"] == dict(containerName="ltjax", operator="In", values=[69, 75])
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 60
  container, = pod["containers"]
  assert container["image"] == "an/image:1" and container["name"] == "ltjax"
  args = [word.replace("$$", "$") for word in container["args"]]  # as Kubernetes reads them
  assert container["command"] + args == RUN
  address, processes, token, number = container["env"]
  assert token == dict(name="LTJAX_TOKEN", value="secret")
  assert address == dict(name="LTJAX_COORDINATOR", value=f"lt-{workers['name']}-0-0.lt:8476")
  assert processes == dict(name="LTJAX_PROCESSES", value="2")
  assert number["name"] == "LTJAX_PROCESS_ID" and "job-completion-index" in number["valueFrom"]["fieldRef"]["fieldPath"]
  assert container["volumeMounts"] == [dict(name="work", mountPath="/work")]
  assert pod["volumes"] == [dict(name="work", persistentVolumeClaim=dict(claimName="lt"))]


def test_kubernetes_accelerators():
  def of(*args):
    jobset = rendered(*args)[1]
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return pod["containers"][0]["resources"]["limits"], pod["nodeSelector"], jobset["metadata"]["annotations"]
  assert of(*GPUS) == ({"nvidia.com/gpu": 4}, {}, {})
  assert of(*TPUS) == (
      {"google.com/tpu": 4},
      {"cloud.google.com/gke-tpu-accelerator": "v5", "cloud.google.com/gke-tpu-topology": "4x4"},
      {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"})


def test_kubernetes_shows_its_commands():
  result = launch("kubernetes.sh", "apply", *KUBERNETES, *GPUS, "--namespace=m", "--dry-run", *AFTER,
                  LTJAX_TOKEN="secret")
  command, manifest = split_input(result.stdout)
  assert command == ["kubectl", "--namespace=m", "apply", "--filename=-"]
  assert list(yaml.safe_load_all(manifest)) == rendered(*GPUS)
  selector = "jobset.sigs.k8s.io/jobset-name=lt,batch.kubernetes.io/job-completion-index=1"
  assert shown("kubernetes.sh", "logs", "--name=lt", "--worker=1") == [
      ["kubectl", "logs", f"--selector={selector}", "--follow", "--tail=100"]]
  stop = ["kubectl", "delete", "jobset", "lt", "--ignore-not-found", "--cascade=foreground", "--wait"]
  assert shown("kubernetes.sh", "stop", "--name=lt") == [stop]
  assert shown("kubernetes.sh", "delete", "--name=lt") == [
      stop, ["kubectl", "delete", "persistentvolumeclaim", "lt", "--ignore-not-found"]]
