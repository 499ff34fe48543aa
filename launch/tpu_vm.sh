#!/usr/bin/env bash
# Trains on a spot Cloud TPU slice of one or more hosts, created again whenever it is taken away, until the run is done:
#   launch/tpu_vm.sh [--dry-run] NAME ZONE TYPE NFS -- --config=configs/cifar10.py:lagrangian,fast --workdir=/nfs/runs/cifar10
#   launch/tpu_vm.sh my-slice us-west4-a v5litepod-256 10.0.0.2:/share -- ...
# NFS (a Filestore instance, say) is mounted on every host as /nfs, and the hosts' user must be able to write to it. It
# holds data sets (/nfs/tfds) and work directories, which would vanish with a slice's own disks. The hosts get the files that
# git tracks, as they are when this starts, committed or not. To reach several hosts, ssh-add ~/.ssh/google_compute_engine
# first. The exit code is the run's, but after a 75 (asked to stop, and saved) the run goes on. The slice is left running:
#   gcloud compute tpus tpu-vm delete NAME --zone=ZONE
# RUNTIME overrides the software version of the hosts.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=no
if [ "${1:-}" = --dry-run ]; then
  dry_run=yes
  shift
fi
if [ $# -lt 6 ] || [ "$5" != -- ]; then
  echo "usage: launch/tpu_vm.sh [--dry-run] NAME ZONE TYPE NFS -- ARGUMENTS of lagrangian_jax.main" >&2
  exit 2
fi
name=$1 zone=$2 type=$3 nfs=$4
shift 5
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
runtime=${RUNTIME:-$runtime}

run() {
  if [ "$dry_run" = yes ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone"
}

# Nobody tells ssh that a host is gone; without the option it would wait for hours.
on_all_hosts() {
  tpu ssh "$name" --worker=all --command="$1" --ssh-flag=-oServerAliveInterval=60
}

create() {
  tpu create "$name" --accelerator-type="$type" --version="$runtime" --spot
}

# shellcheck disable=SC2016  # for the hosts to expand
prepare="share=$(printf %q "$nfs")"'
set -e
if [ ! -x /sbin/mount.nfs ]; then
  sudo apt-get -q update
  sudo apt-get -qy -o DPkg::Lock::Timeout=300 install nfs-common
fi
sudo mkdir -p /nfs
mounted=$(findmnt -n -o SOURCE -M /nfs || true)
if [ "${mounted%/}" != "${share%/}" ]; then
  [ -z "$mounted" ] || sudo umount /nfs
  sudo mount -t nfs "$share" /nfs
fi
rm -rf lagrangian_jax
mkdir lagrangian_jax
tar -xzf lagrangian_jax.tar.gz -C lagrangian_jax
[ -x .local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh # some hosts have an older Python
[ -d venv ] || .local/bin/uv venv --python 3.12 venv
.local/bin/uv pip install -q --python venv/bin/python -e "lagrangian_jax[tpu]"'

# Before every run, so that fixes also reach a slice that already exists.
install() {
  tpu scp "$archive" "$name:" --worker=all && on_all_hosts "$prepare"
}

state() {
  gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || echo ABSENT
}

arguments=$(printf '%q ' "$@")
# The hosts of a slice find each other by its metadata; a single host is a slice of one. Compiled programs are on the
# share, too, since the disks of a slice that is created again are empty.
train="cd lagrangian_jax && export LAGRANGIAN_JAX_DISTRIBUTED=1 TFDS_DATA_DIR=/nfs/tfds XDG_CACHE_HOME=/nfs/.cache && \
source launch/env.sh tpu && ../venv/bin/python -m lagrangian_jax.main $arguments"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/lagrangian_jax.tar.gz
untracked=$(git ls-files --others --exclude-standard)
[ -z "$untracked" ] || printf 'not tracked by git, and not sent:\n%s\n' "$untracked" >&2
changed=$(git stash create) # a commit, on no branch, of what is not committed; empty if everything is
run git archive --output="$archive" "${changed:-HEAD}"

if [ "$dry_run" = yes ]; then
  create
  install
  on_all_hosts "$train"
  echo "if the slice is taken away, or on exit code 75: the same again; otherwise the exit code is the run's"
  exit 0
fi
[ "$(state)" != ABSENT ] || create
while true; do
  code=0
  { install && on_all_hosts "$train"; } || code=$?
  if [ "$code" = 0 ]; then
    exit 0
  elif [ "$code" = 75 ]; then
    sleep 60 # if the slice is being taken away, its state shows it by then
  elif [ "$(state)" = READY ]; then
    echo "the run failed, its message is above; run again, this command resumes where it stopped" >&2
    exit "$code"
  fi
  while found=$(state) && [ "$found" != READY ]; do
    [ "$found" = ABSENT ] || tpu delete "$name" --quiet || true
    sleep 60 # spot capacity comes back within minutes, if at all
    create || true
  done
done
