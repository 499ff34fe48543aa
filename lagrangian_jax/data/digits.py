"""The handwritten digits that come with scikit-learn: 1,797 images, nothing to download."""

from typing import Any

import numpy as np
from PIL import Image

from lagrangian_jax.data.dataset import Dataset, Split, divide, hold_out

TEST = 360


def load(config: Any) -> Dataset:
    """8x8 grey images, enlarged to ``config.image_size`` (32 if that is 0 or absent) and converted to RGB.

    The test set is a fifth of the images, the same in every run and balanced over the classes.
    """
    from sklearn.datasets import load_digits

    size = getattr(config, "image_size", 0) or 32
    grey, labels = load_digits(return_X_y=True)
    grey = np.round(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # published as 0 to 16
    enlarged = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(enlarged)[..., None], 3, axis=-1)
    everything = Split(images, labels.astype(np.int32), np.arange(len(labels), dtype=np.int32))
    kept, held = hold_out(everything.labels, TEST)
    return Dataset(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        **divide(everything.take(kept), everything.take(held), getattr(config, "validation", 0)),
        remark=f"The 1,797 handwritten digits of scikit-learn (8x8 grey), enlarged to {size}x{size} RGB; "
        f"{TEST} of them, fixed, are the test set. A small and easy task: its numbers do not compare with CIFAR-10's.",
    )
