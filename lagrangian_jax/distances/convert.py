"""Saves the convolutions of an AlexNet, which are all that LPIPS needs, as safetensors.

    python -m lagrangian_jax.distances.convert alexnet-owt-7be5be79.pth lpips_alexnet.safetensors
    python -m lagrangian_jax.distances.convert trained.safetensors alexnet_cifar_features.safetensors --half

A PyTorch file is read as weights only (nothing in it is executed), without PyTorch.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from lagrangian_jax.distances.lpips import read_features


def convert(source: str | os.PathLike, target: str | os.PathLike, half: bool = False) -> None:
    """Writes the tensors ``features.*`` of ``source`` to ``target``.

    Args:
      source: what `distances.lpips.read_features` reads: torchvision's .pth, safetensors of a trained AlexNet, or .npz.
      target: the safetensors file to write.
      half: store float16: half the size; distances change by about 1e-4.
    """
    from safetensors.numpy import save

    if not os.fspath(target).endswith(".safetensors"):
        raise ValueError(f"the output must end in .safetensors; got {os.fspath(target)}")
    dtype = np.float16 if half else np.float32
    tensors = {name: np.ascontiguousarray(x, dtype) for name, x in read_features(source).items()}
    pathlib.Path(target).write_bytes(save(tensors))  # `save_file` leaves a file that other users may not read


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lagrangian_jax.distances.convert", description="Save the convolutions of an AlexNet for LPIPS."
    )
    parser.add_argument("source", metavar="IN", help="torchvision's alexnet .pth, or safetensors or .npz of an AlexNet")
    parser.add_argument("target", metavar="OUT", help="safetensors file to write")
    parser.add_argument("--half", action="store_true", help="store float16")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.target, options.half)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.target}: {os.path.getsize(options.target) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
