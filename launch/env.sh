#!/usr/bin/env bash
# All runtime switches in one place; what the environment already sets stays as it is.
#   source launch/env.sh tpu|gpu|cpu       sets them
#   launch/env.sh --dry-run tpu|gpu|cpu    prints what it would set

switch() {
  local name=$1 value=$2
  [ -n "${!name:-}" ] && value=${!name}
  if [ "$env_dry_run" = yes ]; then printf 'export %s=%q\n' "$name" "$value"; else export "$name=$value"; fi
}

env_dry_run=no
home=~ # found even where HOME is not set
if [ "${1:-}" = --dry-run ]; then
  env_dry_run=yes
  shift
fi

# Keep compiled programs: a run that was preempted resumes in seconds, not minutes.
switch JAX_COMPILATION_CACHE_DIR "${XDG_CACHE_HOME:-$home/.cache}/lagrangian_jax/compiled"
# Let a scheduler's log show every line as it is written; a kill then loses none.
switch PYTHONUNBUFFERED 1
# Show warnings and errors of XLA and its libraries, without their information lines.
switch TF_CPP_MIN_LOG_LEVEL 1

case ${1:-} in
  tpu)
    # Stop where there is no TPU, instead of training on the host's CPU for days. The CPU is for host-side arrays.
    switch JAX_PLATFORMS tpu,cpu
    ;;
  gpu)
    # As above; without a GPU it is `parallel.start` that stops, since JAX itself would continue on the CPU.
    switch JAX_PLATFORMS cuda,cpu
    # Nobody else uses the GPU: take most of its memory at once (0.75 otherwise) and leave some to cuDNN and NCCL.
    switch XLA_PYTHON_CLIENT_MEM_FRACTION 0.92
    # Overlap the sum of the gradients over GPUs with the rest of the backward pass.
    switch XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true
    ;;
  cpu)
    # Do not search for accelerators, which takes seconds.
    switch JAX_PLATFORMS cpu
    ;;
  *)
    echo "usage: source launch/env.sh tpu|gpu|cpu, or launch/env.sh --dry-run tpu|gpu|cpu" >&2
    # shellcheck disable=SC2317  # sourced, or run
    return 2 2>/dev/null || exit 2
    ;;
esac
unset env_dry_run home
unset -f switch
