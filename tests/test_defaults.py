"""What attacks and methods do unless told otherwise: the values of the publications and of the originals' code.

A default that moves changes every result that names only the attack, and no other test would see it.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks.augmented_lagrangian import l2_distance

INF = float("inf")
PGD = dict(steps=40, step_size=None, random_start=False, keep="last")  # of the paper's evaluation script
APGD = dict(norm="linf", bound=8 / 255, steps=100, rho=0.75)
ADAM = dict(steps=100, step_size=0.001, smoothness=0.05, keep="last")  # of the ReColorAdv package
UAR = dict(steps=50, step_size=None, random_start=True, keep="last")
PERCEPTUAL = dict(bound=0.5, distance=None, step_size=None, init_std=0.01, projection_steps=None, keep="last")
LAGRANGIAN = dict(steps=5, step_size=0.15, multiplier=2.0, decay=0.1, init_std=0.01, kappa=1.0)
MSD = dict(steps=50, bound_linf=0.03, bound_l1=12.0, step_size_linf=0.003, step_size_l2=0.05, step_size_l1=0.05)
DDN = dict(steps=100, gamma=0.05, init_norm=1.0, levels=256)

ATTACKS = {
    "none": {},
    "lagrangian": dict(**LAGRANGIAN, keep="last"),
    "fgsm": dict(bound=8 / 255, random_start=False),
    "mi_fgsm": dict(bound=8 / 255, steps=10, step_size=None, momentum=1.0, random_start=False, keep="last"),
    "pgd_linf": dict(bound=8 / 255, **PGD),
    "pgd_l2": dict(bound=1.0, **PGD),
    "mpgd": dict(bound=8 / 255, **PGD),
    "apgd_ce": dict(**APGD, random_start=True, keep="last"),
    "apgd_dlr": dict(**APGD, random_start=True, keep="last"),
    "apgd_t": dict(**APGD, targets=9),
    "fab_t": dict(norm="linf", bound=8 / 255, steps=100, targets=9, alpha_max=0.1, eta=1.05, beta=0.9),
    "square": dict(norm="linf", bound=8 / 255, queries=5000, share=0.8),
    "autoattack": dict(norm="linf", bound=8 / 255, steps=100, targets=9, queries=5000),
    "msd": dict(**MSD, bound_l2=0.5, coordinates=(5, 20)),
    "carlini_wagner": dict(steps=1000, search_steps=9, step_size=0.01, initial_const=1e-3, kappa=0.0, abort_early=True),
    "ddn": dict(**DDN, max_norm=None),
    "deepfool": dict(steps=50, overshoot=0.02, classes=10),
    "augmented_lagrangian": dict(
        steps=1000,
        distance=l2_distance,
        init_distance=0.1,
        smoothing=0.9,
        rate_decay=0.01,
        multiplier=1.0,
        penalty=1.0,
        penalty_growth=1.2,
        improvement=0.95,
        check_every=10,
        tolerance=1e-4,
        levels=None,
    ),
    "lpa": PERCEPTUAL
    | dict(steps=200, rounds=5, multiplier=0.01, decay=0.1, kappa=1.0, probe="backward", projection="bisection")
    | dict(group=None),
    "fast_lpa": PERCEPTUAL | dict(steps=20, multiplier=10.0, decay=0.1, kappa=INF, probe="forward", projection="none"),
    "ppgd": PERCEPTUAL | dict(steps=40, decay=1.0, kappa=1.0, solver_steps=5, probe_size=1e-3, projection="newton"),
    "stadv": dict(bound=0.05, **ADAM, align_corners=False),
    "recolor": dict(bound=0.06, **ADAM, resolution=(16, 32, 32)),
    "elastic": dict(bound=0.5, **UAR, kernel_size=25, sigma=3.0, align_corners=False),
    "jpeg": dict(bound=0.125, **UAR),
    "fog": dict(bound=256.0, **UAR, batch_normalise=False),
    "gabor": dict(bound=12.5, **UAR),
    "snow": dict(bound=0.125, **UAR),
    "pgd_l0": dict(pixels=None, max_pixels=9, restarts=None, steps=20, step_size=30000 / 255),
    "corner_search": dict(pixels=10, iterations=1000, candidates=100, batch_size=512),
    "wasserstein": dict(
        bound=0.1, steps=200, step_size=0.1, kernel_size=5, power=2.0, regularisation=3000.0, sinkhorn_steps=400
    ),
    "gaussian_noise": dict(variance=0.05, clip=False),
    "gaussian_blur": dict(kernel_size=5, sigma=1.5, padding="zero"),
}

AT_LINF = dict(bound=10 / 255, steps=10, step_size=2.5 / 255, random_start=True, bound_spread=1.0, statistics="train")
AT_L2 = dict(bound=1.3, steps=10, step_size=0.325, random_start=True, bound_spread=1.0, statistics="train")
NEAR = dict(bound=0.031, steps=10, step_size=0.007, init_std=0.001, bound_spread=1.0, statistics="eval")

METHODS = {
    "standard": {},
    "lagrangian": dict(**LAGRANGIAN, multiplier_spread=1.0, statistics="train"),
    "pgd_linf": AT_LINF,
    "pgd_l2": AT_L2,
    "threshold_linf": AT_LINF,
    "threshold_l2": AT_L2,
    "trades": dict(**NEAR, beta=6.0),
    "mart": dict(**NEAR, beta=5.0),
    "msd": dict(**MSD, bound_l2=0.3, statistics="train"),
    "ddn": dict(**DDN, max_norm=1.0, statistics="eval"),
    "mma": dict(
        largest=2.0,
        smallest=0.5,
        steps=10,
        search_steps=10,
        clean_weight=1 / 3,
        statistics="eval",
        search_statistics="train",
    ),
    "iaat": dict(
        bound=8 / 255,
        steps=10,
        step_size=2 / 255,
        increment=1.9 / 255,
        rate=0.1,
        warmup=10.0,
        statistics="train",
    ),
    "pat": dict(
        bound=0.5,
        steps=10,
        distance="lpips_alexnet_cifar",
        weights="",
        multiplier=10.0,
        init_std=0.01,
        multiplier_spread=1.0,
        statistics="eval",
    ),
    "jpeg": dict(bound=0.25, steps=10, step_size=None, scaled=False, statistics="eval"),
    "carlini_wagner": dict(steps=50, search_steps=5, step_size=0.01, initial_const=1.0, kappa=0.0, statistics="eval"),
}


@pytest.mark.parametrize("name", lj.attacks.names())
def test_attacks(name):
    function = {**lj.attacks.ATTACKS, **lj.attacks.STAGED}[name]
    parameters = inspect.signature(function).parameters.values()
    assert {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY} == ATTACKS[name]


@pytest.mark.parametrize("name", lj.methods.names())
def test_methods(name):
    assert lj.methods.parameters(name) == METHODS[name]


# The step size that is taken if none is given, by bound and steps.
STEP_SIZES = {
    # The evaluation script's bound / 33 in 40 steps: together they reach 40 / 33 of the bound, however many they are.
    **dict.fromkeys(["pgd_linf", "pgd_l2", "mpgd"], lambda bound, steps: bound / 33 * 40 / steps),
    "mi_fgsm": lambda bound, steps: bound / steps,
    **dict.fromkeys(["lpa", "fast_lpa"], lambda bound, steps: bound),
    "ppgd": lambda bound, steps: 2 * bound / steps,
    **dict.fromkeys(["elastic", "fog", "gabor", "jpeg", "snow"], lambda bound, steps: bound / steps**0.5),
}


@pytest.mark.parametrize("name", STEP_SIZES)
def test_a_step_size_that_is_not_given(name):
    """The program is the one with the step size given."""
    options = {"bound": 0.4, "steps": 7}
    if "distance" in lj.attacks.parameters(name):
        options["distance"] = lj.distances.create("l2")
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)

    def program(**given):
        attack = lj.attacks.create(name, **options, **given)
        jaxpr = jax.make_jaxpr(lambda x: attack(jax.random.key(0), lambda x: x[:, 0, :4, 0], x, jnp.array([0, 1])))
        return re.sub("0x[0-9a-f]+", "", str(jaxpr(images)))

    step_size = STEP_SIZES[name](0.4, 7)
    assert program() == program(step_size=step_size)
    assert program() != program(step_size=1.01 * step_size)


def test_no_step_size_is_forgotten():
    without = {name for name in lj.attacks.names() if lj.attacks.parameters(name).get("step_size", 0) is None}
    assert without == set(STEP_SIZES)
