#!/usr/bin/env bash
# What a GPU has to show, in phases that stand alone; docs/gpu.md says how a sitting goes.
#
#     scripts/gpu/run.sh [--out DIR] [--pack DIR] [--archive FILE] [PHASE ...]
#     scripts/gpu/run.sh --rehearse        the same code on a CPU, with tiny sizes
#
# A phase is stopped at its limit. What it had by then is in DIR and in the archive, and the same command goes on there.
set -uo pipefail
cd "$(dirname "$0")/../.."

# By value, with the seconds that each may take.
phases=(tests kernels inference original skipping)
declare -A limits=([tests]=90 [kernels]=90 [inference]=180 [original]=200 [skipping]=200)

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  for phase in "${phases[@]}"; do printf '    %-10s %s s\n' "$phase" "${limits[$phase]}"; done
}
fail() {
  echo "run.sh: $1" >&2
  exit 2
}

out=runs/gpu pack='' options=() chosen=() limit='' rehearse=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --rehearse) options+=(--rehearse) rehearse=1 ;;
    --out | --pack | --archive | --limit)
      [ $# -gt 1 ] || fail "$1 needs a value"
      case $1 in --out) out=$2 ;; --pack) pack=$2 ;; --limit) limit=$2 ;; *) options+=("$1" "$2") ;; esac
      shift
      ;;
    *)
      [ -n "${limits[$1]:-}" ] || fail "there is no phase $1; phases: ${phases[*]}"
      chosen+=("$1")
      ;;
  esac
  shift
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${phases[@]}")
# The limits are a GPU's; a rehearsal, on a machine that others use too, is to come to its end.
[ -z "$rehearse" ] || limit=${limit:-1800}

python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
export PYTHONPATH="$PWD/src:$PWD${pack:+:$pack/site}${PYTHONPATH:+:$PYTHONPATH}"
export LAYERROUTE_CACHE=${LAYERROUTE_CACHE:-${pack:-$out}/cache}
if [ -n "$pack" ]; then
  # Git does not travel: the pack says which revision this is, and whether it is that one.
  LAYERROUTE_REVISION=$("$python" -m scripts.gpu.packing revision "$pack") || exit $?
  export LAYERROUTE_REVISION
  options+=(--pack "$pack")
fi

worst=0
for phase in "${chosen[@]}"; do
  seconds=${limit:-${limits[$phase]}}
  # The phase ends itself in time, so that records are whole; this is for one that hangs.
  timeout --signal=TERM --kill-after=5 "$seconds" \
    "$python" -m scripts.gpu.sitting "$phase" --seconds "$seconds" --out "$out" "${options[@]}"
  code=$?
  [ $code -eq 0 ] || worst=1
  [ $code -ne 2 ] || exit 2
done
exit $worst
