"""Draws what each attack does to two photographs: ``python -m docs.pictures [ATTACK ...]`` writes docs/pictures/*.webp.

The photographs come with scikit-learn (CC BY 2.0; docs/attacks.md names their authors). The attacked network tells
eight crops of them apart by the first two layers of the packaged CIFAR-10 AlexNet. That is small enough for a CPU; the
pictures show how an attack's perturbations look, not how strong it is.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

import lagrangian_jax as lj

FOLDER = pathlib.Path(__file__).with_name("pictures")
TILE = 128
# (photograph, row and column of the upper left corner, side) of each crop: 0 is the temple, 1 the flower. SHOWN is the
# first crop of each.
CROPS = (
    *((0, row, column, 160) for row, column in ((175, 200), (20, 40), (230, 430), (60, 460))),
    *((1, row, column, 300) for row, column in ((60, 190), (120, 0), (0, 330), (127, 340))),
)
SHOWN = (0, 4)
OVERVIEW = (
    "pgd_linf",
    "lagrangian",
    "stadv",
    "recolor",
    "jpeg",
    "elastic",
    "fog",
    "gabor",
    "snow",
    "lpa",
    "wasserstein",
)

# Parameters that differ from the defaults: budgets for 128 x 128 pixels instead of 32 x 32, and fewer steps where the
# picture stays the same.
PARAMETERS: dict[str, dict] = {
    "pgd_l2": dict(bound=4.0),
    "apgd_ce": dict(norm="l2", bound=4.0),
    "apgd_dlr": dict(norm="l2", bound=4.0),
    "msd": dict(bound_l2=2.0, bound_l1=60.0, step_size_l2=0.2),
    "carlini_wagner": dict(steps=100, search_steps=5, initial_const=1.0),
    "augmented_lagrangian": dict(steps=100, smoothing=0.5),
    "lpa": dict(steps=40),
    "ppgd": dict(steps=20),
    "square": dict(bound=16 / 255, queries=1000),
    "fab_t": dict(norm="l2", bound=4.0, steps=20),
    "wasserstein": dict(bound=0.3, steps=40),
    "lagrangian": dict(multiplier=0.45, step_size=0.25),
    "pgd_l0": dict(pixels=40, restarts=4),
    "corner_search": dict(iterations=100),
    "autoattack": dict(bound=4 / 255, steps=20, queries=200),
}
# Attacks on single pixels are shown on small images, whose pixels are large.
SIDE = {"pgd_l0": 32, "corner_search": 32}


def photographs(side: int) -> np.ndarray:
    """The eight crops, (8, side, side, 3) float32 in [0, 1]."""
    images = [Image.fromarray(image) for image in load_sample_images().images]
    boxes = [(which, (column, row, column + size, row + size)) for which, row, column, size in CROPS]
    crops = [images[which].crop(box).resize((side, side), Image.Resampling.LANCZOS) for which, box in boxes]
    return np.stack([np.asarray(crop) for crop in crops]).astype(np.float32) / 255


def network(side: int):
    """``logits_fn(images)``: 10 for a crop's own class, 0 for the others; linear in the mean features."""
    distance = lj.distances.create("lpips_alexnet_cifar")
    first, second = 64 * (side // 2) ** 2, 192 * (side // 4) ** 2

    def means(images):
        features = distance.features(images)[:, : first + second]  # cut off first: the other layers are never computed
        layers = features[:, :first], features[:, first:]
        pooled = [layer.reshape(len(images), -1, size).mean(1) for layer, size in zip(layers, (64, 192), strict=True)]
        return jnp.concatenate(pooled, axis=-1)

    weights = 10 * jnp.linalg.pinv(jax.jit(means)(photographs(side)))
    return lambda images: means(images) @ weights


def attacked(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two photographs, clean and under an attack, (2, side, side, 3) each."""
    side = SIDE.get(name, TILE)
    images, labels = photographs(side)[list(SHOWN)], np.array(SHOWN, np.int32)
    parameters = dict(PARAMETERS.get(name, {}))
    if name in ("lpa", "fast_lpa", "ppgd"):
        parameters["distance"] = lj.distances.create("lpips_alexnet_cifar")
    attack = lj.attacks.create(name, **parameters)
    return images, np.clip(attack(jax.random.key(0), network(side), images, labels), 0, 1)


def strip(images: np.ndarray, adversarial: np.ndarray) -> Image.Image:
    """For each photograph: clean, attacked, and the perturbation around middle grey, its largest value at the limit."""
    perturbation = adversarial - images
    largest = np.maximum(np.abs(perturbation).max((1, 2, 3), keepdims=True), 1e-6)
    rows = zip(images, adversarial, 0.5 + perturbation / (2 * largest), strict=True)
    tiles = [Image.fromarray(np.round(255 * tile).astype(np.uint8)) for row in rows for tile in row]
    picture = Image.new("RGB", (TILE * len(tiles), TILE))
    for column, tile in enumerate(tiles):
        picture.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (TILE * column, 0))
    return picture


def overview(names: tuple[str, ...]) -> Image.Image:
    """The README's picture, put together from those of single attacks: the temple, clean and under each attack."""
    strips = [Image.open(FOLDER / f"{name}.webp") for name in names]
    tiles = [strips[0].crop((0, 0, TILE, TILE)), *(strip.crop((TILE, 0, 2 * TILE, TILE)) for strip in strips)]
    columns = len(tiles) // 2
    picture = Image.new("RGB", (TILE * columns, 2 * TILE))
    for place, tile in enumerate(tiles):
        picture.paste(tile, (TILE * (place % columns), TILE * (place // columns)))
    return picture


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or lj.attacks.names():
        images, adversarial = attacked(name)
        strip(images, adversarial).save(FOLDER / f"{name}.webp", quality=70, method=6)
        size = np.sqrt(np.square(adversarial - images).sum((1, 2, 3)))
        print(f"{name}: mean l2 norm {size.mean():.2f}", flush=True)
    if all((FOLDER / f"{name}.webp").is_file() for name in OVERVIEW):
        overview(OVERVIEW).save(FOLDER / "overview.webp", quality=70, method=6)


if __name__ == "__main__":
    main(sys.argv[1:])
