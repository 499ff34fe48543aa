#!/usr/bin/env bash
# Trains, evaluates and reports on all GPUs of this machine, in one process.
#   launch/gpu.sh [--dry-run] --config=configs/cifar10.py:lagrangian,fast --workdir=runs/cifar10
# The arguments are those of `python -m lagrangian_jax.main`. Run again, it resumes where it stopped; exit code 75 asks
# for that (a machine that is about to be taken away sends SIGTERM first).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

dry_run=no
if [ "${1:-}" = --dry-run ]; then
  dry_run=yes
  shift
fi
command=("${PYTHON:-python3}" -m lagrangian_jax.main "$@")

if [ "$dry_run" = yes ]; then
  bash "$here/env.sh" --dry-run gpu
  printf '%q ' exec "${command[@]}"
  echo
  exit 0
fi
# shellcheck source=launch/env.sh
source "$here/env.sh" gpu
exec "${command[@]}"
