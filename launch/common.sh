# shellcheck shell=bash
# Used by the other scripts of this folder: parses the command line, and runs commands or prints them.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: bash 4.4 or newer is needed, this is $BASH_VERSION." >&2
  exit 2
fi

shopt -u patsub_replacement 2>/dev/null || true  # newer versions of bash replace & by the match

declare -A option=()     # a script's options with their defaults; `false` marks a flag
declare -a arguments=()  # the arguments after `--`, for ltjax.main
dry_run=false

fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

usage() {  # prints the comment at the top of the script
  sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
}

parse() {
  local name
  while (($#)); do
    case $1 in
      --help) usage && exit ;;
      --dry-run) dry_run=true && shift && continue ;;
      --) shift && arguments=("$@") && break ;;
      --*) ;;
      *) fail "'$1' is not an option. Options of the script come first, then --, then those of ltjax.main; see --help." ;;
    esac
    name=${1#--}
    name=${name%%=*}
    [[ -v "option[$name]" ]] || fail "There is no option --$name; see --help."
    if [[ ${option[$name]} == @(true|false) ]]; then
      [[ $1 != *=* ]] || fail "--$name takes no value."
      option[$name]=true && shift
    elif [[ $1 == *=* ]]; then
      option[$name]=${1#*=} && shift
    else
      (($# > 1)) || fail "--$name needs a value."
      option[$name]=$2 && shift 2
    fi
  done
}

need() {  # fails unless the named options have a value
  local name
  for name; do
    [[ -n ${option[$name]} ]] || fail "--$name is missing; see --help."
  done
}

need_number() {  # fails unless the named options are integers from 1
  need "$@"
  local name
  for name; do
    [[ ${option[$name]} =~ ^[1-9][0-9]{0,4}$ ]] || fail "--$name is '${option[$name]}', not a number from 1 to 99999."
  done
}

need_arguments() {
  [[ " ${arguments[*]} " == *" --config="* && " ${arguments[*]} " == *" --workdir="* ]] ||
    fail "After -- come the arguments of ltjax.main, at least --config=... and --workdir=...; see --help."
}

make_token() {  # a secret for the processes of a run; LTJAX_TOKEN if it is already set
  LTJAX_TOKEN=${LTJAX_TOKEN:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
}

quoted() {  # the words, quoted for a shell
  local word text=""
  for word; do
    [[ -n $word && $word != *[^][:alnum:]:=./,@%+_-]* ]] || word=${word@Q}
    text+=" $word"
  done
  printf '%s\n' "${text:1}"
}

run_or_print() {
  if $dry_run; then quoted "$@"; else "$@"; fi
}

run_or_print_with_input() {  # the first argument goes to the command's standard input
  local input=$1
  shift
  if $dry_run; then
    printf "%s <<'END_OF_INPUT'\n%s\nEND_OF_INPUT\n" "$(quoted "$@")" "$input"
  else
    "$@" <<<"$input"
  fi
}
