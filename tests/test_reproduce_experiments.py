"""What each table and figure does with what was measured; the measurements are made up, and asked for exactly."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import data
from lagrangian_jax.evaluation import suites
from lagrangian_jax.evaluation.result import AttackResult, Result
from lagrangian_jax.reproduce import networks
from lagrangian_jax.reproduce.experiments import EXPERIMENTS
from lagrangian_jax.reproduce.workbench import Trained, Workbench

COUNT = 200


class Bench(Workbench):
    """Networks that need no training. The i-th row asked for has 100 + i correct images, and norms of i."""

    def __init__(self):
        super().__init__(pathlib.Path("nowhere"))
        self.asked, self.analysed = {}, {}
        self.dataset = data.load(networks.load(networks.Network("cifar10", "lagrangian"), "quick", {}).data)

    def each(self, wanted):
        for network in wanted:
            yield network, self.trained(network)

    def trained(self, network):
        self.network = network.name
        return Trained(self.config(network), pathlib.Path(network.name), self.dataset, {}, None)

    def attack(self, found, rows, grid=False):
        known = self.asked.setdefault(found.workdir.name, {})
        results = []
        for row in suites.rows(rows):
            known.setdefault(row.name, (len(known), row))
            number = known[row.name][0]
            norms = {f"mean_{norm}": number + share for norm, share in (("l0", 0.0), ("l2", 0.25), ("linf", 0.5))}
            results.append(result(row, 100 + number, **norms))
        return Result(
            "custom",
            0,
            tuple(results),
            failures=(),
            versions={},
            device={},
            data={"examples": COUNT},
            network={},
            examples={each.name: {"correct": np.arange(COUNT) < each.correct} for each in results},
        )

    def analyse(self, found, name, about, function, *others):
        self.analysed.setdefault(found.workdir.name, {})[name] = about, function, others
        return {"index": np.arange(COUNT), "label": np.zeros(COUNT, int), "seconds": np.array(1.0)} | self.numbers[name]

    def report(self, found, result):
        pass


def result(row, correct, **norms):
    return AttackResult(
        name=row.name,
        label=row.label,
        attack=row.attack,
        parameters=dict(row.parameters),
        column=row.column,
        correct=correct,
        total=COUNT,
        accuracy=correct / COUNT,
        **norms,
        mean_ssim=None,
        seconds=1.0,
        compile_seconds=1.0,
        gradient_evaluations=None,
        forward_passes=None,
        cost_exact=True,
        attacked=COUNT,
        stages=(COUNT,),
    )


def make(name, numbers=None):
    bench = Bench()
    bench.numbers = numbers
    return bench, EXPERIMENTS[name].make(bench, EXPERIMENTS[name].work)


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_robustness_is_accuracy_in_per_cent_by_column_and_its_means(name):
    _, outcome = make(name)
    suite = suites.get({"table1": "cifar10_table1", "table2": "imagenet100_table2"}[name])
    expected = {row.column: 100 * (100 + i) / COUNT for i, row in enumerate(suite) if row.column}
    assert len(outcome.rows) == len(EXPERIMENTS[name].work)
    unseen, union = suites.MEANS[0 if name == "table1" else 1]
    for row in outcome.rows.values():
        assert {column: row[column] for column in expected} == pytest.approx(expected)
        assert row["unseen_mean"] == pytest.approx(np.mean([expected[column] for column in unseen]))
        assert row["union_mean"] == pytest.approx(np.mean([expected[column] for column in union]))
        assert row["worst_case"] == pytest.approx(100 * 100 / COUNT)
    compared = {"over_ours", "over_ours_error"}
    for method, row in outcome.rows.items():
        assert set(row) == set(outcome.columns) - (compared if method == "lagrangian" else set())


def test_unseen_means_are_compared_over_the_same_images():
    """Here `trades` withstands each unseen attack on ten images more than the rest: a paired difference, by hand."""

    class Better(Bench):
        def attack(self, found, rows, grid=False):
            result = super().attack(found, rows, grid)
            if found.workdir.name == "cifar10-trades":
                for row in result.examples.values():
                    row["correct"][-10:] = True  # after the last that any attack leaves
            return result

    bench = Better()
    rows = EXPERIMENTS["table1"].make(bench, EXPERIMENTS["table1"].work).rows
    gained = np.r_[np.zeros(COUNT - 10), np.ones(10)]
    assert rows["trades"]["over_ours"] == pytest.approx(100 * 10 / COUNT)
    assert rows["trades"]["over_ours_error"] == pytest.approx(100 * gained.std(ddof=1) / np.sqrt(COUNT))
    assert rows["ddn"]["over_ours"] == rows["ddn"]["over_ours_error"] == 0


def test_table3_measures_the_derivative_by_both_estimators_and_losses():
    rng = np.random.default_rng(0)
    names = ("cross_entropy_1", "margin_1", "cross_entropy_0.5", "cross_entropy_1.5")
    numbers = {
        f"multiplier_{name}": {"difference": rng.normal(size=COUNT), "envelope": rng.normal(size=COUNT)}
        for name in names
    }
    bench, outcome = make("table3", numbers)
    about = {name: {key: value for key, value in a.items()} for name, (a, *_) in bench.analysed["cifar10-pat"].items()}
    common = {"half_width": 0.1, "steps": 40}
    assert about == {
        "multiplier_cross_entropy_1": {"loss": "cross_entropy", "center": 1.0, **common},
        "multiplier_margin_1": {"loss": "margin", "center": 1.0, **common},
        "multiplier_cross_entropy_0.5": {"loss": "cross_entropy", "center": 0.5, **common},
        "multiplier_cross_entropy_1.5": {"loss": "cross_entropy", "center": 1.5, **common},
    }
    first = numbers["multiplier_cross_entropy_1"]
    row = outcome.rows["lagrangian"]
    assert row["mean"] == pytest.approx(first["difference"].mean())
    assert row["std"] == pytest.approx(first["difference"].std())
    assert row["cross_entropy_1_envelope"] == pytest.approx(first["envelope"].mean())
    assert row["margin_1_difference"] == pytest.approx(numbers["multiplier_margin_1"]["difference"].mean())
    assert set(row) == set(outcome.columns)


def test_table3_hands_its_parameters_to_the_estimator():
    """The function that runs, on a network whose multiplier is known: linear, with the margin as the loss."""
    numbers = {
        f"multiplier_{name}": dict.fromkeys(("difference", "envelope"), np.ones(COUNT))
        for name in ("cross_entropy_1", "margin_1", "cross_entropy_0.5", "cross_entropy_1.5")
    }
    bench, _ = make("table3", numbers)
    weights = jnp.array([[0.03, -0.03], [0.04, -0.04]])
    _, function, _ = bench.analysed["cifar10-pat"]["multiplier_margin_1"]

    def logits_fn(images):
        return images[..., 0].reshape(len(images), -1)[:, :2] @ weights

    found = function(jax.random.split(jax.random.key(0), 1), logits_fn, jnp.full((1, 4, 4, 1), 0.5), jnp.array([0]))
    for estimator in ("difference", "envelope"):
        # The box ends 0.5 away: along (-0.6, -0.8) the second pixel meets it before the bound of 1.
        assert 0 <= float(found[estimator][0]) < 0.1


def test_table5_and_6_are_accuracies_at_the_paper_s_budgets():
    bench, outcome = make("table5")
    bounds = {name: row.parameters["bound"] for name, (_, row) in bench.asked["cifar10-msd"].items()}
    l2 = {"pgd_l2_0.75": 0.75, "pgd_l2": 1.0, "pgd_l2_1.25": 1.25}
    linf = {"pgd_linf_6": 6 / 255, "pgd_linf": 8 / 255, "pgd_linf_10": 10 / 255}
    assert bounds == pytest.approx(l2 | linf)
    keys = ("l2_0.75", "l2_1", "l2_1.25", "linf_6", "linf_8", "linf_10")
    assert outcome.rows["msd"] == pytest.approx({key: 50 + i / 2 for i, key in enumerate(keys)})

    bench, outcome = make("table6")
    for config, linf, l2 in (("cifar10", 8 / 255, 1.0), ("imagenet100", 4 / 255, 4.0)):
        asked = {name: (row.attack, dict(row.parameters)) for name, (_, row) in bench.asked[f"{config}-pat"].items()}
        assert asked == {
            "pgd_linf": ("pgd_linf", {"bound": pytest.approx(linf), "steps": 40}),
            "autoattack_linf": ("autoattack", {"norm": "linf", "bound": pytest.approx(linf)}),
            "pgd_l2": ("pgd_l2", {"bound": l2, "steps": 40}),
            "autoattack_l2": ("autoattack", {"norm": "l2", "bound": l2}),
        }
        expected = {"linf": 50.0, "autoattack_linf": 50.5, "l2": 51.0, "autoattack_l2": 51.5}
        assert outcome.rows[f"{config}:pat"] == pytest.approx(expected)


def test_table7_is_mean_norms():
    _, outcome = make("table7")
    suite = suites.get("cifar10_table1")
    for number, row in enumerate(suite):
        if row.column and row.column != "clean":
            expected = {"mean_l2": number + 0.25, "mean_linf": number + 0.5, "mean_l0": number}
            assert outcome.rows[row.column] == pytest.approx(expected)
    assert outcome.rows["lagrangian"]["mean_l2"] == len(suite) + 0.25


def test_f2b_is_the_mean_where_defined_with_either_penalty(monkeypatch):
    ratio = np.full(COUNT, 2.0)
    ratio[:50] = np.nan
    numbers = {
        "f2b_l2": {"ratio": ratio, "ratio_before": ratio + 1},
        "f2b_lpips": {"ratio": 2 * ratio, "ratio_before": 3 * ratio},
    }
    create = lj.distances.create
    monkeypatch.setattr(lj.distances, "create", lambda name, **_: create("l2"))  # no weights are at hand
    _, outcome = make("f2b", numbers)
    assert outcome.rows["cifar10"] == {"l2": 2.0, "lpips": 4.0}
    assert outcome.rows["imagenet100"] == {"l2": 2.0, "l2_before": 3.0, "lpips": 4.0, "lpips_before": 6.0}
    assert outcome.details["cifar10, l2: images left out"] == 50


def test_f2b_attacks_with_the_parameters_of_training():
    bench, _ = make("f2b", {f"f2b_{penalty}": {"ratio": np.ones(COUNT)} for penalty in ("l2", "lpips")})
    assert "imagenet100: distance 'lpips_alexnet' needs weights=FILE" in bench.left_out[0]
    asked = bench.analysed["cifar10-lagrangian"]
    assert asked["f2b_l2"][0]["attack"] == "lagrangian"
    assert asked["f2b_lpips"][0]["attack"] == "fast_lpa"
    trained = {name: bench.config(networks.Network("cifar10", name)).method for name in ("lagrangian", "pat")}
    for penalty, method in (("l2", "lagrangian"), ("lpips", "pat")):
        parameters = asked[f"f2b_{penalty}"][0]["parameters"]
        shared = {*parameters, *trained[method]} - ({*parameters} ^ {*trained[method]}) - {"distance"}
        assert {"steps", "multiplier"} <= shared
        assert {name: parameters[name] for name in shared} == {name: trained[method][name] for name in shared}


def test_figure2_is_the_rank_correlation_of_each_attack():
    confidence = np.linspace(0.1, 0.9, COUNT)
    rows = ("lagrangian", "pgd_l2", "pgd_linf", "fast_lpa")
    numbers = {f"norm_{name}": {"confidence": confidence, "norm": confidence**2} for name in rows}
    numbers["norm_pgd_linf"]["norm"] = 1 - confidence
    numbers["norm_pgd_l2"]["norm"] = np.ones(COUNT)
    _, outcome = make("figure2", numbers)
    found = {name: row["rank_correlation"] for name, row in outcome.rows.items()}
    assert found == pytest.approx({"lagrangian": 1, "pgd_l2": np.nan, "pgd_linf": -1, "fast_lpa": 1}, nan_ok=True)
    assert outcome.rows["lagrangian"]["mean_l2"] == pytest.approx(np.mean(confidence**2))
    assert outcome.rows["lagrangian"]["std_l2"] == pytest.approx(np.std(confidence**2))


@pytest.mark.parametrize(
    ("name", "norm", "bounds"),
    [
        ("figure5", "l2", (0, 0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)),
        ("figure8", "l2", range(7)),
        ("figure9", "linf", range(11)),
    ],
)
def test_curves_are_accuracy_at_every_bound(name, norm, bounds):
    bench, outcome = make(name)
    assert list(outcome.columns) == [f"{bound:g}" for bound in bounds]
    for work in EXPERIMENTS[name].work:
        asked = [row for _, row in bench.asked[work.network.name].values()]
        assert [row.attack for row in asked] == ["none", *[f"pgd_{norm}"] * (len(bounds) - 1)]
        scale = 255 if norm == "linf" else 1
        assert [row.parameters["bound"] * scale for row in asked[1:]] == pytest.approx(list(bounds)[1:])
        row = outcome.rows[work.network.method]
        assert list(row.values()) == pytest.approx([50 + i / 2 for i in range(len(bounds))])
