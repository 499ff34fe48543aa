"""Attacks: pure functions from images to adversarial images.

>>> import lagrangian_jax as lj
>>> attack = lj.attacks.create("pgd_l2", bound=1.0, steps=40)
>>> attack.parameters["steps"]
40
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lagrangian_jax.attacks import (
    apgd,
    autoattack,
    corruptions,
    elastic,
    fab,
    fog,
    gabor,
    gradient,
    jpeg,
    minimal_norm,
    recolor,
    snow,
    sparse,
    square,
    stadv,
    wasserstein,
)
from lagrangian_jax.attacks.arrays import example_keys, fold_in
from lagrangian_jax.attacks.attack import Attack, Execution, Stage, Standing, execute, in_batches
from lagrangian_jax.attacks.augmented_lagrangian import augmented_lagrangian
from lagrangian_jax.attacks.carlini_wagner import carlini_wagner
from lagrangian_jax.attacks.lagrangian import lagrangian
from lagrangian_jax.attacks.msd import msd
from lagrangian_jax.attacks.perceptual import fast_lpa, lpa, ppgd
from lagrangian_jax.attacks.ranges import LINF_BOUND, RANGES, check_ranges
from lagrangian_jax.names import unknown

# Plain attacks: (key, logits_fn, images, labels, **parameters) -> adversarial images.
ATTACKS: dict[str, Callable[..., Any]] = {
    "none": corruptions.none,
    "lagrangian": lagrangian,
    "fgsm": gradient.fgsm,
    "mi_fgsm": gradient.mi_fgsm,
    "pgd_linf": gradient.pgd_linf,
    "pgd_l2": gradient.pgd_l2,
    "mpgd": gradient.mpgd,
    "apgd_ce": apgd.apgd_ce,
    "apgd_dlr": apgd.apgd_dlr,
    "square": square.square,
    "msd": msd,
    "carlini_wagner": carlini_wagner,
    "ddn": minimal_norm.ddn,
    "deepfool": minimal_norm.deepfool,
    "augmented_lagrangian": augmented_lagrangian,
    "lpa": lpa,
    "fast_lpa": fast_lpa,
    "ppgd": ppgd,
    "stadv": stadv.stadv,
    "recolor": recolor.recolor,
    "elastic": elastic.elastic,
    "jpeg": jpeg.jpeg,
    "fog": fog.fog,
    "gabor": gabor.gabor,
    "snow": snow.snow,
    "corner_search": sparse.corner_search,
    "wasserstein": wasserstein.wasserstein,
    "gaussian_noise": corruptions.gaussian_noise,
    "gaussian_blur": corruptions.gaussian_blur,
}

# Attacks in stages, which run on the examples that still hold: (**parameters) -> sequence of `Stage`.
STAGED: dict[str, Callable[..., Any]] = {
    "pgd_l0": sparse.pgd_l0,
    "apgd_t": apgd.apgd_t,
    "fab_t": fab.fab_t,
    "autoattack": autoattack.autoattack,
}

# Attacks whose ball is always linf; others take ``norm`` if they have a choice of balls.
LINF = ("fgsm", "mi_fgsm", "pgd_linf", "mpgd")

# Attacks that draw random numbers for more than their start.
RANDOM = ("gabor", "snow")

__all__ = [
    "ATTACKS",
    "STAGED",
    "Attack",
    "Execution",
    "Stage",
    "Standing",
    "create",
    "execute",
    "in_batches",
    "names",
    "parameters",
]


def names() -> tuple[str, ...]:
    """The names that `create` takes."""
    return tuple(sorted({**ATTACKS, **STAGED}))


def parameters(name: str) -> dict[str, Any]:
    """The parameters of an attack, with their defaults; for some attacks `create` takes ``restarts`` as well.

    Raises:
      ValueError: unknown name; the message lists the valid ones.

    >>> parameters("fgsm")["random_start"]
    False
    """
    if name not in ATTACKS and name not in STAGED:
        raise unknown("attack", name, names())
    given = inspect.signature(ATTACKS.get(name) or STAGED[name]).parameters.values()
    return {p.name: p.default for p in given if p.kind is inspect.Parameter.KEYWORD_ONLY}


def create(name: str, **given: Any) -> Attack:
    """A configured attack.

    Args:
      name: one of `names()`.
      **given: parameters of that attack; see its function. Any attack with ``random_start`` or ``init_std`` also takes
        ``restarts``: it runs again, with other random numbers, on the examples that still hold. With ``norm="l2"`` the
        bound must be given. A real number may also be a scalar of JAX, even one that `jax.jit` or `jax.vmap` traces,
        as in a curve over bounds; a traced one is not checked.

    Returns:
      an `Attack`, called as ``attack(key, logits_fn, images, labels)``.

    Raises:
      ValueError: unknown name or parameter, or a value out of range; the message says what is valid.

    >>> create("pgd_l3")
    Traceback (most recent call last):
    ...
    ValueError: unknown attack 'pgd_l3'; did you mean 'pgd_l2'? Valid: apgd_ce, ...
    """
    defaults = parameters(name)
    function = ATTACKS.get(name) or STAGED[name]
    takes_restarts = name in ATTACKS and {"random_start", "init_std"} & defaults.keys()
    valid = (*defaults, "restarts") if takes_restarts else tuple(defaults)
    for parameter in given:
        if parameter not in valid:
            raise unknown(f"parameter of attack {name!r}:", parameter, valid)
    values = {**defaults, **{parameter: _python_scalar(value) for parameter, value in given.items()}}
    in_linf = name in LINF or values.get("norm") == "linf"
    check_ranges(f"attack {name!r}", values, {**RANGES, "bound": LINF_BOUND} if in_linf else RANGES)
    if values.get("norm") == "l2" and "bound" in defaults and "bound" not in given:
        raise ValueError(f"attack {name!r}: bound must be given with norm='l2', as 1.0; the default is meant for linf")
    if name in STAGED:
        return Attack(name, values, tuple(function(**values)), survivors=True)
    restarts = values.pop("restarts", None) or 1
    plain = functools.partial(function, **values)
    return Attack(name, values, (Stage(plain),)) if restarts == 1 else _restarted(name, plain, values, restarts)


def _python_scalar(value: Any) -> Any:
    array = isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer)
    return value.item() if array and value.ndim == 0 else value


def _restarted(name: str, plain: Callable[..., Any], values: dict[str, Any], restarts: int) -> Attack:
    if not (values.get("random_start") or values.get("init_std") or name in RANDOM):
        start = "random_start=True" if "random_start" in values else "init_std above 0"
        raise ValueError(f"attack {name!r}: restarts would all be the same; give {start}")

    def again(keys, logits_fn, images, labels, restart):
        keys = example_keys(keys, images.shape[0])
        # The first run uses the keys that an attack without restarts would, so that restarts never make it weaker.
        return plain(jnp.where(restart == 0, keys, fold_in(keys, restart)), logits_fn, images, labels)

    stages = tuple(Stage(again, (np.int32(restart),)) for restart in range(restarts))
    return Attack(name, {**values, "restarts": restarts}, stages, survivors=True, keep_failures=True)
