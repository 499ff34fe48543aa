# For GPU hosts with NVIDIA's driver and container toolkit; CUDA's libraries come with JAX's wheels.
#   docker build -t lagrangian_jax .
#   mkdir -p runs && sudo chown 1000 runs      the user inside writes there; docker itself would make it root's
#   docker run --gpus all --shm-size=8g --stop-timeout=120 -v "$PWD/runs:/runs" -v "$HOME/tensorflow_datasets:/data:ro" \
#     lagrangian_jax --config=configs/cifar10.py:lagrangian,fast --workdir=/runs/cifar10
# SIGTERM (docker stop) saves and ends with code 75; the same command goes on from there.
FROM python:3.11.13-slim-bookworm

# Which of the host's driver libraries the container sees: computing and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    TFDS_DATA_DIR=/data \
    XDG_CACHE_HOME=/runs/.cache

WORKDIR /lagrangian_jax
# First what seldom changes: an edit of the code then rebuilds in seconds.
COPY launch/requirements.txt launch/requirements.txt
RUN pip install -r launch/requirements.txt
COPY . .
RUN pip install --no-deps . \
    && useradd --create-home --uid 1000 runner \
    && install -d -o runner /runs
USER 1000
# As the first process and without a shell between, so that SIGTERM reaches Python.
ENTRYPOINT ["launch/gpu.sh"]
