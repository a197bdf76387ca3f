#!/usr/bin/env bash
# Runs ltjax.main as several processes of this machine, for testing or one process for each GPU.
#
#   launch/local.sh --processes N [options] -- --config=... --workdir=...
#
#   --processes N              how many
#   --devices-per-process K    devices of each (1): GPUs where there are any, else that many CPU devices
#   --coordinator-port PORT    where they meet (a free one)
#   --dry-run                  print the commands, run none
#
# Process 0 has the terminal; lines of process i begin with [i]. SIGINT, SIGTERM, SIGUSR1 and SIGHUP go to every process.
# Ends when all have ended: with 0 if all succeeded, 75 if they were stopped with everything saved, else with the code of
# the first that failed; with 69, another process is missing, only if no process says why.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
set -m  # a process group each: Ctrl-C reaches this script alone, which passes it on once

option=([processes]="" [devices-per-process]=1 [coordinator-port]="")
parse "$@"
need_number processes devices-per-process
need_arguments
processes=${option[processes]} devices=${option[devices-per-process]}

port=${option[coordinator-port]}
[[ -z $port ]] || need_number coordinator-port
while [[ -z $port ]]; do  # a free one below the range from which the system gives ports to clients
  port=$((20000 + RANDOM % 12000))
  ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || port=""
done

gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]] && found=$(nvidia-smi -L 2>/dev/null); then
  mapfile -t gpus < <(grep '^GPU' <<<"$found" | sed 's/^GPU \([0-9]*\):.*/\1/')
  [[ -z ${CUDA_VISIBLE_DEVICES-} ]] || IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  ((${#gpus[@]} >= processes * devices)) ||
    fail "$((processes * devices)) GPUs are asked for, ${#gpus[@]} are here; JAX_PLATFORMS=cpu does without."
fi

guard=()
! setpriv --pdeathsig TERM true 2>/dev/null || guard=(setpriv --pdeathsig TERM)  # for kill -9 of this script

compose() {  # the command line of process $1, into `command`
  command=("${guard[@]}" env "LTJAX_COORDINATOR=localhost:$port" "LTJAX_PROCESSES=$processes"
    "LTJAX_PROCESS_ID=$1")
  if ((${#gpus[@]})); then
    local own=("${gpus[@]:$1 * devices:devices}")
    command+=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${own[*]}")")
  else
    command+=("JAX_NUM_CPU_DEVICES=$devices")
  fi
  command+=(python -m ltjax.main "${arguments[@]}")
}

prefix() {  # outlives the signals, so that last words are read
  trap '' INT TERM USR1 HUP
  exec sed -u "s/^/[$1] /"
}

pids=() readers=() pending=""
pass_on() {
  local name=$pending
  pending=""
  [[ -z $name ]] || kill -s "$name" "${pids[@]}" 2>/dev/null || true  # one that has ended needs no signal
}
# systemd and Slurm signal this script and its processes alike, so a process may get a signal twice: ltjax.main takes
# what comes within 10 seconds for one request. Here each signal is passed on once, when all have been started.
asked() {
  interrupted=true pending=$1
  ((${#pids[@]} < processes)) || pass_on
}
for name in INT TERM USR1 HUP; do
  # shellcheck disable=SC2064
  trap "asked $name" "$name"
done
make_token
export LTJAX_TOKEN

for ((i = 0; i < processes; i++)); do
  compose "$i"
  if $dry_run; then
    quoted "${command[@]}" && continue
  elif ((i == 0)); then
    "${command[@]}" &
  else
    exec {pipe}> >(prefix "$i")
    readers+=($!)
    "${command[@]}" >&"$pipe" 2>&1 &
    exec {pipe}>&-
  fi
  pids+=($!)
done
! $dry_run || exit 0
pass_on

wait_for() {  # process $1, to its end; its exit code into `code`
  interrupted=true
  while $interrupted; do  # a signal ends `wait` before the process has ended
    interrupted=false code=0
    wait "$1" || code=$?
  done
}

stopped=0 missing=0 failed=0
for i in "${!pids[@]}"; do
  wait_for "${pids[i]}"
  ((code == 0)) || echo "local.sh: process $i ended with exit code $code" >&2
  case $code in
    0) ;;
    75) stopped=75 ;;
    69) missing=69 ;;
    *) ((failed)) || failed=$code ;;
  esac
done
for reader in "${readers[@]}"; do  # their last words
  wait_for "$reader"
done
for code in $failed $missing $stopped; do
  ((code == 0)) || exit "$code"
done
