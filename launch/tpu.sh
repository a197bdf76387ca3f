#!/usr/bin/env bash
# Runs ltjax.main on all workers of a Cloud TPU VM, a single host or a pod.
#
#   launch/tpu.sh create --name N --zone Z --type v5litepod-64 [--version V] [--spot]
#   launch/tpu.sh copy   --name N --zone Z            copy the last commit to ~/ltjax on every worker and install it
#   launch/tpu.sh run    --name N --zone Z -- --config=... --workdir=...
#   launch/tpu.sh logs   --name N --zone Z [--worker W]    follow one worker's log (0)
#   launch/tpu.sh stop   --name N --zone Z            SIGTERM to all workers; waits until they have saved and ended
#   launch/tpu.sh delete --name N --zone Z
#
#   --version V                the TPU VM's software (Google's recommendation for the type)
#   --project P                the Google Cloud project (gcloud's default)
#   --dry-run                  print the commands, run none
#
# run starts a systemd unit, which needs no open connection; repeat it to continue after a stop or a preemption.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

option=([name]="" [zone]="" [type]="" [version]="" [project]="" [worker]=0 [spot]=false)
commands=" create copy run logs stop delete "
case ${1---help} in
  -*) parse "$@" && fail "A command is missing. There are:$commands(see --help)." ;;
esac
command=$1
[[ $commands == *" $command "* ]] || fail "There is no command '$command', only:$commands(see --help)."
parse "${@:2}"
need name zone

tpu_vm() {
  local line=(gcloud compute tpus tpu-vm "$@" "--zone=${option[zone]}")
  [[ -z ${option[project]} ]] || line+=("--project=${option[project]}")
  run_or_print "${line[@]}"
}

on() {  # runs the shell command $2 on worker $1, or on "all"
  tpu_vm ssh "${option[name]}" "--worker=$1" "--command=$2"
}

software() {  # the recommended software for the type of the TPU
  case ${option[type]} in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  need type
  local more=()
  if ${option[spot]}; then more=(--spot); fi
  tpu_vm create "${option[name]}" "--accelerator-type=${option[type]}" "--version=${option[version]:-$(software)}" \
    "${more[@]}"
}

copy() {  # uv installs Python 3.12, because the machines' 3.10 is too old
  local root
  root=$(cd "$(dirname "$0")/.." && pwd)
  run_or_print mkdir -p "$root/build"
  run_or_print git -C "$root" archive --format=tar.gz --output=build/ltjax.tar.gz HEAD
  tpu_vm scp "$root/build/ltjax.tar.gz" "${option[name]}:ltjax.tar.gz" --worker=all
  on all "set -e; mkdir -p ltjax; tar -xzf ltjax.tar.gz -C ltjax; cd ltjax; python3 -m pip install --quiet --user uv; \
[ -e .venv ] || python3 -m uv venv --quiet --python 3.12 .venv; \
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
}

run() {
  need_arguments
  make_token
  local unit=(sudo systemd-run --unit=ltjax --collect "--setenv=LTJAX_TOKEN=$LTJAX_TOKEN")
  unit+=(--property=SuccessExitStatus=75 --property=TimeoutStopSec=90 --property=LimitMEMLOCK=infinity
    --property=LimitNOFILE=1048576)
  # $USER and $HOME are the worker's; a $ in an argument is doubled because systemd replaces variables once more
  on all "$(quoted "${unit[@]}") --uid=\"\$USER\" --working-directory=\"\$HOME/ltjax\" \
\"\$HOME/ltjax/.venv/bin/python\" $(quoted -m ltjax.main "${arguments[@]//\$/\$\$}")"
}

case $command in
  logs) on "${option[worker]}" "sudo journalctl --unit=ltjax --lines=100 --follow --output=cat" ;;
  stop) on all "if systemctl is-active --quiet ltjax; then sudo systemctl stop ltjax; fi" ;;
  delete) tpu_vm delete "${option[name]}" ;;
  *) "$command" ;;
esac
