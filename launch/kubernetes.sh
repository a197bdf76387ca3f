#!/usr/bin/env bash
# Runs ltjax.main on Kubernetes as a JobSet (launch/jobset.yaml), with one process per node.
#
#   launch/kubernetes.sh apply  --name N --image I --nodes K --storage-class C [options] \
#                               -- --config=... --workdir=/work/...
#   launch/kubernetes.sh render ...                      print the manifest only
#   launch/kubernetes.sh logs   --name N [--worker W]    follow one pod's log (0)
#   launch/kubernetes.sh stop   --name N                 SIGTERM to all pods; waits until they have saved and ended
#   launch/kubernetes.sh delete --name N                 stop, then delete the volume with all results
#
#   --gpus-per-node G          GPUs per node, or
#   --tpus-per-node T          TPU chips per node, with the next two, which select GKE's node pool:
#   --tpu-accelerator A        cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice
#   --tpu-topology X           cloud.google.com/gke-tpu-topology, such as 4x4
#   --storage-class C          class of the volume at /work; must allow ReadWriteMany (GKE: standard-rwx)
#   --storage S                its size (1Ti)
#   --namespace M              (kubectl's default)
#   --dry-run                  print the commands, run none
#
# To continue a run: stop it if the JobSet still exists, and apply again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

option=([name]="" [image]="" [nodes]="" [gpus-per-node]="" [tpus-per-node]="" [tpu-accelerator]="" [tpu-topology]=""
  [storage-class]="" [storage]=1Ti [namespace]="" [worker]=0)
commands=" render apply logs stop delete "
case ${1---help} in
  -*) parse "$@" && fail "A command is missing. There are:$commands(see --help)." ;;
esac
command=$1
[[ $commands == *" $command "* ]] || fail "There is no command '$command', only:$commands(see --help)."
parse "${@:2}"
need name
[[ ${option[name]} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||  # pods append to it, and Kubernetes allows 63 letters
  fail "--name is '${option[name]}', which is not at most 40 of a-z, 0-9 and - beginning with a letter."

kubectl=(kubectl)
[[ -z ${option[namespace]} ]] || kubectl+=("--namespace=${option[namespace]}")

json() {  # the words as a JSON list; $ is doubled because Kubernetes replaces $(...) and $$
  local word text=""
  for word; do
    [[ $word != *[[:cntrl:]]* ]] || fail "An argument contains a control character: $(quoted "$word")."
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//\$/\$\$}
    text+=", \"$word\""
  done
  echo "[${text:2}]"
}

render() {
  need image storage-class storage
  need_number nodes
  need_arguments
  [[ " ${arguments[*]} " == *" --workdir=/work/"* ]] ||
    fail "--workdir must be under /work, the volume: files elsewhere are lost with the pod."
  local selector="{}" annotations="{}" limits
  if [[ -n ${option[tpus-per-node]} ]]; then
    need tpu-accelerator tpu-topology
    need_number tpus-per-node
    selector="{cloud.google.com/gke-tpu-accelerator: ${option[tpu-accelerator]},"
    selector+=" cloud.google.com/gke-tpu-topology: ${option[tpu-topology]}}"
    annotations="{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}"  # all pods in one slice
    limits="{google.com/tpu: ${option[tpus-per-node]}}"
  else
    need_number gpus-per-node
    limits="{nvidia.com/gpu: ${option[gpus-per-node]}}"
  fi
  make_token
  local -A value=([TOKEN]=$LTJAX_TOKEN [NAME]=${option[name]} [IMAGE]=${option[image]} [NODES]=${option[nodes]} [LIMITS]=$limits
    [STORAGE_CLASS]=${option[storage-class]} [STORAGE]=${option[storage]} [NODE_SELECTOR]=$selector
    [ANNOTATIONS]=$annotations [ARGUMENTS]=$(json "${arguments[@]}"))
  local line key
  while IFS= read -r line; do
    for key in "${!value[@]}"; do
      if [[ $line == *"\${$key}"* ]]; then line=${line//"\${$key}"/${value[$key]}}; fi
    done
    echo "$line"
  done < <(sed 1d "$(dirname "$0")/jobset.yaml")
}

stop() {
  run_or_print "${kubectl[@]}" delete jobset "${option[name]}" --ignore-not-found --cascade=foreground --wait
}

case $command in
  render) render ;;
  apply)
    manifest=$(render)
    run_or_print_with_input "$manifest" "${kubectl[@]}" apply --filename=-
    ;;
  logs)
    labels="jobset.sigs.k8s.io/jobset-name=${option[name]},batch.kubernetes.io/job-completion-index=${option[worker]}"
    run_or_print "${kubectl[@]}" logs "--selector=$labels" --follow --tail=100
    ;;
  stop) stop ;;
  delete)
    stop
    run_or_print "${kubectl[@]}" delete persistentvolumeclaim "${option[name]}" --ignore-not-found
    ;;
esac
