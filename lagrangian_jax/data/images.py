"""Work on one image on the host: reading it, and the crops for training and testing."""

import math
from typing import Any

import numpy as np
from PIL import Image

from lagrangian_jax.data.dataset import DataError

Box = tuple[int, int, int, int]  # left, upper, right, lower, as in Pillow


def read_image(opened: Any, name: str) -> Image.Image:
    """The RGB image in a path or file object; ``name`` is for the error."""
    try:
        with Image.open(opened) as image:
            if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
                return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{name}: not there any more; restore it, or start a new run without it") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be read as an image ({error}); replace or remove it") from error


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The box that torchvision's RandomResizedCrop cuts out.

    Its share of the area is uniform on ``scale``, its aspect ratio log-uniform on ``ratio``, its position uniform. A
    box that does not fit is drawn again; if ten draws fail, it is the largest central one with a ratio in ``ratio``.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            upper, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """`random_box` resized to size x size (bilinear, antialiased), and flipped half of the time."""
    # Crop first: with the box argument of `resize`, the filter would see pixels outside the box.
    cropped = image.crop(random_box(*image.size, rng)).resize((size, size), Image.Resampling.BILINEAR)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to 256/224 of ``size`` (bilinear, antialiased) and crops the central size x size."""
    width, height = image.size
    short = round(size * 256 / 224)
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, upper, left + size, upper + size))
