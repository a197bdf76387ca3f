#!/usr/bin/env bash
# Runs ltjax.main under Slurm, with one process per GPU.
#
#   launch/slurm.sh --nodes N --gpus-per-node K --time HH:MM:SS [options] -- --config=... --workdir=...    (submits)
#   launch/slurm.sh logs JOB    follow the log
#   launch/slurm.sh stop JOB    save and end, without a requeue
#
#   --partition P              partition (the cluster's default); set the account and the like with SBATCH_ACCOUNT etc.
#   --cpus-per-task C          CPUs per process (4)
#   --dry-run                  print the commands, run none
#
# Submit from the root of the repository with ltjax's environment active; the log is slurm-JOB.out there. Two minutes
# before the time limit the run saves and exits with 75; the job then requeues itself and continues.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

submit() {
  option=([nodes]="" [gpus-per-node]="" [time]="" [partition]="" [cpus-per-task]=4)
  parse "$@"
  need time
  need_number nodes gpus-per-node cpus-per-task
  need_arguments
  local job=(sbatch --job-name=ltjax "--nodes=${option[nodes]}" "--gpus-per-node=${option[gpus-per-node]}"
    "--ntasks-per-node=${option[gpus-per-node]}" "--cpus-per-task=${option[cpus-per-task]}" "--time=${option[time]}"
    --signal=USR1@120 --requeue --open-mode=append)
  [[ -z ${option[partition]} ]] || job+=("--partition=${option[partition]}")
  # --signal without B: goes to the processes of srun and not to the batch script. A task sees all GPUs of its node: JAX
  # takes the one with the index SLURM_LOCALID, which --gpus-per-task would hide. A process that has ended must not end
  # the others, which may still be saving.
  local step=(srun "--cpus-per-task=${option[cpus-per-task]}" --label --kill-on-bad-exit=0 --wait=0
    python -m ltjax.main "${arguments[@]}")
  local script
  script=$(
    cat <<END
#!/usr/bin/env bash
LTJAX_TOKEN=\$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')
export LTJAX_TOKEN
code=0
$(quoted "${step[@]}") || code=\$?
if ((code == 75)); then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$code"
END
  )
  run_or_print_with_input "$script" "${job[@]}"
}

job_number() {
  [[ ${1-} =~ ^[0-9]+$ ]] || fail "The number of the job is missing; see --help."
  id=$1
  parse "${@:2}"
}

case ${1-} in
  logs)
    job_number "${@:2}"
    run_or_print tail --lines=100 --follow=name --retry "slurm-$id.out"
    ;;
  stop)
    job_number "${@:2}"
    run_or_print scontrol update "JobId=$id" Requeue=0  # exit code 75 would requeue it
    run_or_print scancel --signal=TERM "$id"
    ;;
  *) submit "$@" ;;
esac
