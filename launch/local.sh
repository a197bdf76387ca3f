#!/usr/bin/env bash
# Runs ltjax.main as several processes on this machine, for tests or with one process per GPU.
#
#   launch/local.sh --processes N [options] -- --config=... --workdir=...
#
#   --processes N              number of processes
#   --devices-per-process K    devices per process (1): GPUs if there are any, else CPU devices
#   --coordinator-port PORT    port where they meet (a free one)
#   --dry-run                  print the commands, run none
#
# Process 0 has the terminal; lines of process i begin with [i]. SIGINT, SIGTERM, SIGUSR1 and SIGHUP go to every process.
# Waits for all processes. The exit code is 0 if all succeeded, 75 if they were stopped with everything saved, else that
# of the first one that failed; 69 (another process is missing) only if all failures are of this kind.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
set -m  # gives each process its own group: Ctrl-C reaches this script alone, which passes it on once

option=([processes]="" [devices-per-process]=1 [coordinator-port]="")
parse "$@"
need_number processes devices-per-process
need_arguments
processes=${option[processes]} devices=${option[devices-per-process]}

port=${option[coordinator-port]}
[[ -z $port ]] || need_number coordinator-port
while [[ -z $port ]]; do  # find a free one, below the range that the system uses for clients
  port=$((20000 + RANDOM % 12000))
  ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || port=""
done

gpus=()
if [[ ${JAX_PLATFORMS-} != cpu ]] && found=$(nvidia-smi -L 2>/dev/null); then
  mapfile -t gpus < <(grep '^GPU' <<<"$found" | sed 's/^GPU \([0-9]*\):.*/\1/')
  [[ -z ${CUDA_VISIBLE_DEVICES-} ]] || IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  ((${#gpus[@]} >= processes * devices)) ||
    fail "$((processes * devices)) GPUs are needed, this machine has ${#gpus[@]}; set JAX_PLATFORMS=cpu to use CPUs."
fi

guard=()
# Ends the processes if this script is killed with -9.
! setpriv --pdeathsig TERM true 2>/dev/null || guard=(setpriv --pdeathsig TERM)

compose() {  # sets `command` to the command line of process $1
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

prefix() {  # ignores the signals, so that it can pass on the process's last lines
  trap '' INT TERM USR1 HUP
  exec sed -u "s/^/[$1] /"
}

pids=() readers=() pending=""
pass_on() {
  local name=$pending
  pending=""
  [[ -z $name ]] || kill -s "$name" "${pids[@]}" 2>/dev/null || true  # some may have ended
}
# systemd and Slurm signal this script and its processes alike, so a process may get a signal twice: for ltjax.main,
# signals within 10 seconds are one request. Here each signal is passed on once, after all processes have started.
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

wait_for() {  # waits until process $1 ends, and sets `code` to its exit code
  interrupted=true
  while $interrupted; do  # a signal interrupts `wait`
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
for reader in "${readers[@]}"; do  # for their last lines
  wait_for "$reader"
done
for code in $failed $missing $stopped; do
  ((code == 0)) || exit "$code"
done
