#!/usr/bin/env bash
# Makes all measurements that an accelerator is wanted for, in under 10 minutes on one H100 or H200:
#   bash benchmarks/accelerator.sh DIR
# Each measurement leaves DIR/NAME.json and DIR/NAME.log; one that is already there is not made again, so the same
# command goes on where it was stopped. DIR/budget records the budget they were made with. A measurement that fails, or
# exceeds its time limit, is reported at the end, and the exit code is 1. `python -m benchmarks.targets DIR` prints the
# results beside the targets, as this script does at its end.
#
# BUDGET=tiny   small networks, few images, hasty compilation, in minutes on a CPU: tests the script, measures nothing
# TIME          seconds after which everything stops (590)
# PYTHON        the interpreter (python3), which has PyTorch, JAX for the device, and the package's dependencies
# WHEELS        a folder of wheels for a machine without a network (.wheels); they are installed for this run only.
#               For a machine that has PyTorch, JAX, Flax, Optax, Orbax, Pillow and scikit-learn, fetch the rest into
#               the checkout, where there is a network, with
#                 pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#                   --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d .wheels \
#                   ml-collections tensorboardX tqdm grain array-record portpicker importlib-resources
# shellcheck disable=SC2054  # the commas belong to arguments
set -uo pipefail
directory=$(mkdir -p "${1:?usage: bash benchmarks/accelerator.sh DIR}" && cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python3}
budget=${BUDGET:-full}
total=${TIME:-590}
wheels=${WHEELS:-.wheels}
[ -s "$directory/budget" ] || echo "$budget" >"$directory/budget"
if [ "$(cat "$directory/budget")" != "$budget" ]; then
  echo "error: $directory holds measurements with BUDGET=$(cat "$directory/budget"), not $budget; choose another" >&2
  exit 2
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --target "$site" "$wheels"/*.whl || exit 1
fi

fast=(--config=cifar10:lagrangian,fast)
paper=(--config=cifar10)
stream=(--config=imagenet100:lagrangian,fast --config.train.batch_size=256 --config.data.workers=14)
start=(--config=digits --config.network.width=64 --config.precision=bfloat16 --config.train.batch_size=512)
compared=standard,lagrangian,pgd_5,pgd_linf,pat
tuned=channels_last,compile,graph
turns=(--rounds=3 --seconds=2)
methods=("${turns[@]}" "${fast[@]}")
attacks=(--images=1000 --width=64 --attacks=lagrangian,fast_lpa,ppgd,fog,snow,gabor,carlini_wagner,ddn --suite=none)
suite=(--images=1000 --width=64 --attacks=none)
autoattack=(--images=500 --width=64 --attacks=apgd_ce,apgd_t,fab_t,square --suite=none)
input=(--rounds=3 --calls=4)
if [ "$budget" = tiny ]; then
  small=(--config.network.width=4 --config.train.batch_size=8 --config.train.steps_per_call=2)
  fast+=("${small[@]}")
  paper+=("${small[@]}")
  stream=(--config=imagenet100:lagrangian,smoke --files=32)
  start=(--config=digits:lagrangian,smoke)
  compared=standard,lagrangian
  tuned=channels_last
  turns=(--rounds=1 --seconds=0)
  methods=("${turns[@]}" "${paper[@]}")
  attacks=(--images=4 --width=4 --most=2 --attacks=lagrangian,pgd_linf --suite=none)
  suite=(--images=4 --width=4 --most=2 --attacks=none --suite=quick)
  autoattack=(--images=4 --width=4 --most=2 --attacks=apgd_ce,square --suite=none)
  input=(--rounds=1 --calls=2)
  export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1
else
  # shellcheck source=launch/env.sh
  source launch/env.sh gpu
  export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch shares the device
fi

missing=()
# measure NAME SECONDS MODULE ARGUMENTS...
measure() {
  local name=$1 limit=$2 module=$3
  shift 3
  [ -s "$directory/$name.json" ] && return
  local left=$((total - SECONDS))
  if [ "$left" -lt 15 ]; then
    missing+=("$name: no time left; the same command goes on")
    return
  fi
  [ "$budget" = tiny ] && limit=$left # a CPU may be slow
  echo "== $name ($SECONDS s)"
  limit=$((left < limit ? left : limit))
  # Written under another name until it is complete, so that a measurement that was stopped is made again.
  local code=0
  timeout --kill-after=5 "$limit" "$python" -m "benchmarks.$module" "$@" --output="$directory/$name.part" \
    >"$directory/$name.log" 2>&1 || code=$?
  case $code in
    0)
      mv "$directory/$name.part" "$directory/$name.json"
      tail -n 12 "$directory/$name.log"
      ;;
    124 | 137) missing+=("$name: stopped after $limit s; the same command goes on, with what is already compiled") ;;
    *) missing+=("$name: failed; $(tail -n 1 "$directory/$name.log")") ;;
  esac
}

# What matters most comes first.
measure train_fast_eager 120 train_step "${turns[@]}" "${fast[@]}" --peer=torch --peer-options=bfloat16
measure train_fast_tuned 150 train_step "${turns[@]}" "${fast[@]}" --peer=torch --peer-options="$tuned,bfloat16"
measure train_paper_eager 90 train_step "${turns[@]}" "${paper[@]}" --peer=torch --peer-options=none
measure train_paper_tuned 120 train_step "${turns[@]}" "${paper[@]}" --peer=torch --peer-options="$tuned"
measure methods 120 methods --methods="$compared" "${methods[@]}"
measure suite 150 attack_suite "${suite[@]}"
measure autoattack 150 attack_suite "${autoattack[@]}"
measure start 90 start "${start[@]}"
measure input_resident 60 input "${input[@]}" "${fast[@]}"
measure input_streaming 120 input "${input[@]}" "${stream[@]}"
measure floors 60 floors "${fast[@]}" --compile
measure attacks 120 attack_suite "${attacks[@]}"

"$python" -m benchmarks.targets "$directory"
if [ "${#missing[@]}" -gt 0 ]; then
  printf 'not measured: %s\n' "${missing[@]}" >&2
  exit 1
fi
