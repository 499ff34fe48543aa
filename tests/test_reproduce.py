"""The paper's tables and figures: its numbers agree with each other, plans say what they cost, results what differs."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import resource
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lagrangian_jax import data, models
from lagrangian_jax.evaluation import Row, suites
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.report.analysis_figures import accuracy_against_bound
from lagrangian_jax.reproduce import __main__ as door
from lagrangian_jax.reproduce import cost, networks, output, paper, plan, workbench
from lagrangian_jax.reproduce.experiment import Outcome
from lagrangian_jax.reproduce.experiments import EXPERIMENTS
from lagrangian_jax.reproduce.networks import Network
from lagrangian_jax.reproduce.workbench import Trained, Workbench

TABLES = {"table1": paper.TABLE1, "table2": paper.TABLE2}


# ---- The paper's numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_printed_means_are_those_of_the_columns(name):
    complete = 0
    unseen, union = suites.MEANS[0 if name == "table1" else 1]
    for row in TABLES[name].values():
        for key, columns in (("unseen_mean", unseen), ("union_mean", union)):
            if key in row and all(column in row for column in columns):
                # Four of the columns are known to one decimal.
                assert math.fsum(row[c] for c in columns) / len(columns) == pytest.approx(row[key], abs=0.035)
                complete += 1
    assert complete == (1 if name == "table1" else 0)


def test_tables_agree_with_each_other():
    for method, row in paper.TABLE5.items():
        assert (row["l2_1"], row["linf_8"]) == (paper.TABLE1[method]["l2"], paper.TABLE1[method]["linf"])
    for key, row in paper.TABLE6.items():
        config, method = key.split(":")
        table = {"cifar10": paper.TABLE1, "imagenet100": paper.TABLE2}[config]
        assert (row["linf"], row["l2"]) == (table[method]["linf"], table[method]["l2"])
        assert row["autoattack_linf"] < row["linf"]
        assert row["autoattack_l2"] < row["l2"]
    for key, row in paper.TABLE4.items():
        config, method = key.split(":")
        table = {"cifar10": paper.TABLE1, "imagenet100": paper.TABLE2}[config]
        # The paper prints 50.5 where Table 2 has 50.35.
        assert row["pgd_small"] == pytest.approx(
            table[method]["linf"], abs=0.15 if key == "imagenet100:pgd_linf" else 0
        )
        assert row["mpgd_small"] < row["pgd_small"]
        assert row["mpgd_large"] < row["pgd_large"]


def test_every_number_has_a_row_and_a_column_here():
    columns = {
        "table1": {row.column for row in suites.get("cifar10_table1")},
        "table2": {row.column for row in suites.get("imagenet100_table2")},
    }
    for name, table in TABLES.items():
        methods = {work.network.method for work in EXPERIMENTS[name].work}
        assert set(table) <= methods <= set(paper.METHODS)
        assert {column for row in table.values() for column in row} <= columns[name] | {"unseen_mean", "union_mean"}


# ---- Costs and plans ----------------------------------------------------------------------------


def test_passes_of_training():
    def units(method):
        return cost.of_training(networks.load(Network("cifar10", method), "paper", {})).units

    assert units("standard") == 3
    assert units("lagrangian") == 5 * 2 + 3  # the README's 13
    assert units("pgd_l2") == 10 * 2 + 3
    # 10 steps, the clean prediction they start from, a clean and an adversarial pass, and one for its statistics alone.
    assert units("trades") == 10 * 2 + 1 + 2 * 3 + 1


def test_passes_of_attacks():
    assert cost.of_row(Row("none")).units == 1
    assert cost.of_row(Row("pgd_linf", parameters={"steps": 7})) == (8, 7, 0, True)
    lpa = cost.of_row(Row("lpa", parameters={"bound": 0.5, "steps": 7, "distance": "lpips_alexnet_cifar"}))
    assert lpa == (1 + 5 * 7, 5 * 7, 0, False)
    full, fewer = (cost.of_row(Row("autoattack", parameters={"queries": q})) for q in (5000, 4000))
    assert full.forward - fewer.forward == 1000
    assert not full.exact


def test_dry_run_says_what_and_how_much(tmp_path, capsys):
    arguments = ["table6", f"--workdir={tmp_path / 'out'}", "--dry-run", "--methods=lagrangian", "--rate=1000"]
    assert door.main([*arguments, "--cifar10.train.epochs=5"]) == 0
    text = capsys.readouterr().out
    command = "python -m lagrangian_jax.main --config=cifar10:lagrangian --config.train.epochs=5 "
    assert f"{command}--workdir={tmp_path / 'out' / 'networks' / 'cifar10-lagrangian'}\n" in text
    assert "cifar10-pat" not in text
    passes = 100_000 * 13 + 150_000 * 3  # 2 adversarial epochs of 50,000, 3 clean ones
    assert f"{passes:.3g} passes, {passes / 1000:,.0f} s at 1,000 passes a second\n" in text
    assert "10,000 test images" in text
    assert not (tmp_path / "out").exists()


def test_dry_run_without_a_rate_measures_it_once_a_network(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(plan, "measured_rate", lambda config: measured.append(config.network.name) or 500.0)
    assert door.main(["all", f"--workdir={tmp_path}", "--dry-run", "--preset=quick"]) == 0
    assert len(measured) == 2  # the one that is attacked, and the one that segments
    text = capsys.readouterr().out
    for experiment in EXPERIMENTS.values():
        assert all(work.network.name in text for work in experiment.work)
    passes, seconds, hours = re.search(r"Sum: (.*) passes, ([0-9,]*) s, ([0-9,.]*) hours\n", text).groups()
    assert float(passes) / 500 == pytest.approx(float(seconds.replace(",", "")), rel=0.01)
    assert float(hours.replace(",", "")) == pytest.approx(float(passes) / 500 / 3600, rel=0.01, abs=0.05)
    parts = [float(part.replace(",", "")) for part in re.findall(r" passes, ([0-9,]*) s at 500 passes", text)]
    assert sum(parts) == pytest.approx(float(seconds.replace(",", "")), abs=len(parts) / 2)


def test_the_rate_is_that_of_gradients(monkeypatch):
    """Two calls of 32 images fit into a second of this clock; a gradient is two passes."""
    clock = iter([0.0, 0.5, 0.9, 1.6, 1.6])
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    config = networks.load(Network("cifar10", "lagrangian"), "quick", {})
    assert plan.measured_rate(config) == pytest.approx(2 * 2 * 32 / 1.6)


def test_plan_counts_validation_and_quotes(tmp_path, capsys):
    arguments = ["table1", f"--workdir={tmp_path / 'a b'}", "--dry-run", "--methods=trades pgd_l2", "--rate=1e3"]
    assert door.main([*arguments, "--cifar10.data.validation=1000", "--cifar10.train.epochs=5"]) == 0
    text = capsys.readouterr().out
    assert f"'--workdir={tmp_path / 'a b'}/networks/cifar10-pgd_l2'" in text
    # 2 epochs of PGD-10, 3 clean ones; 1,000 images under PGD in 10 steps after each of 5, and their clean prediction.
    passes = 2 * 49_000 * 23 + 3 * 49_000 * 3 + 5 * 1000 * (21 + 1)
    assert f"; 147,000 clean ones; 5,000 held out\n    {passes:.3g} passes" in text


@pytest.mark.parametrize("preset", networks.PRESETS)
def test_every_network_has_a_configuration(preset):
    for network in {work.network for experiment in EXPERIMENTS.values() for work in experiment.work}:
        config = networks.load(network, preset, {})
        assert config.method.name == network.method.split(",")[0]
        assert (config.evaluation.checkpoint == "best") >= ("early_stopping" in network.method)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table9"], "table or figure 'table9'"),
        (["table1", "--preset=slimmer"], "did you mean 'slim'"),
        (["table1", "--cifar.train.epochs=1"], "did you mean 'cifar10'"),
        (["table1", "--epochs=1"], "--cifar10.field=value"),
        (["table1", "--use=runs/cifar10"], "NAME=WORKDIR"),
        (["table1", "--use=cifar10-trades="], "NAME=WORKDIR"),
        (["table1", "--use=cifar10-lagrangain=runs/cifar10"], "did you mean 'cifar10-lagrangian'"),
        (["table1", "--use=cifar10-trades=nowhere"], "nowhere holds no trained network"),
        (["table1", "--methods=tradse"], "did you mean 'trades'"),
        (["table1", "--methods=lagrangian,pgd_l2"], "by spaces, --methods='lagrangian pgd_l2'; got"),
        (["table5", "--methods=jpeg"], "table5 is of lagrangian, msd, pat, pgd_l2, pgd_linf; got 'jpeg'"),
        (["f2b", "--methods=pgd_l2"], "f2b is of lagrangian; got 'pgd_l2'"),
        (["figure2", "--flowers.train.epochs=3"], "concerns no network that is asked for; they are of cifar10"),
        (["figure2", "--preset=quick", "--cifar10.train.epochs=3"], "they are of digits"),
        (["table1", "--cifar10.train.epoch=3"], "did you mean 'epochs'"),
        (["table1", "--cifar10.train.epochs=many"], "train.epochs"),
        (["table1", "--cifar10.method.bownd=3"], "method.bownd=3 concerns no network"),
    ],
)
def test_wrong_usage_is_one_line(arguments, expected, tmp_path, capsys):
    assert door.main([*arguments, f"--workdir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert expected in message


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("train.batch_size=0", "train.batch_size: expected"),
        ("data.name=nonsense", "unknown data set 'nonsense'"),
        ("data.validation=60000", "data.validation: expected 0 to 49999"),
    ],
)
def test_what_cannot_be_planned_is_one_line(field, expected, tmp_path, capsys):
    assert door.main(["figure2", "--dry-run", "--rate=1", f"--workdir={tmp_path}", f"--cifar10.{field}"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert expected in message


@pytest.mark.parametrize("rate", ["0", "-5", "nan", "inf", "fast"])
def test_a_rate_is_a_number_above_zero(rate, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        door.main(["figure2", "--dry-run", f"--rate={rate}", f"--workdir={tmp_path}"])
    assert exit.value.code == 2
    assert f"argument --rate: expected a number of passes above 0, got {rate}\n" in capsys.readouterr().err


def test_a_method_s_parameter_is_set_where_there_is_one():
    overrides = {"cifar10": [("method.bound", "0.25"), ("method.weights", "w.npz")]}
    wanted = [Network("cifar10", method) for method in ("pat", "pgd_l2", "lagrangian")]
    networks.check_overrides(wanted, "paper", overrides)
    pat, pgd, lagrangian = (networks.load(network, "paper", overrides).method for network in wanted)
    assert (pat.bound, pat.weights, pgd.bound) == (0.25, "w.npz", 0.25)
    assert "bound" not in lagrangian
    with pytest.raises(ValueError, match=r"--cifar10.method.weights=w.npz concerns no network"):
        networks.check_overrides(wanted[1:], "paper", overrides)


# ---- Results ------------------------------------------------------------------------------------


def test_table_shows_the_difference():
    found = {
        "preset": "paper",
        "networks": {name: {"data": {"examples": count}} for name, count in (("a", 10_000), ("b", 1000), ("c", 1000))},
        "device": {"count": 1, "kind": "cpu"},
        "heading": "Method",
        "columns": {"clean": "Clean", "l2": "l2", "linf": "linf"},
        "rows": [
            {
                "label": "Ours",
                "here": {"clean": 80.0, "linf": 50.0},
                "paper": {"clean": 80.43},
                "difference": {"clean": 80.0 - 80.43},
            },
            {"label": "Other", "here": {"clean": 90.0}, "paper": {"clean": 90.001}, "difference": {"clean": -0.001}},
            {"label": "Not run", "here": {}, "paper": {"linf": 40.0}, "difference": {}},
        ],
        "remarks": ["A remark."],
        "left_out": ["imagenet100: no data"],
    }
    table = output.table(found)
    assert table.header == ["Method", "", "Clean", "linf"]  # a column without a number has no place
    assert table.rows == [
        ["Ours", "here", "80.00", "50.00"],
        ["", "paper", "80.43", "–"],
        ["", "difference", "-0.43", "–"],
        ["Other", "here", "90.00", "–"],
        ["", "paper", "90.00", "–"],
        ["", "difference", "+0.00", "–"],
        ["Not run", "paper", "–", "40.00"],
    ]
    assert table.notes == [
        "Preset 'paper'; 1 x cpu; 1,000, 10,000 test images.",
        "A remark.",
        "Left out: imagenet100: no data",
    ]


def test_table_without_printed_numbers_has_no_column_for_them():
    rows = [{"label": "Ours", "here": {"1": 50.0}, "paper": {}, "difference": {}}]
    found = {
        "preset": "slim",
        "networks": {},
        "device": {"count": 1, "kind": "cpu"},
        "heading": "Method",
        "columns": {"1": "1"},
    }
    table = output.table({**found, "rows": rows, "remarks": [], "left_out": []})
    assert (table.header, table.rows, table.left) == (["Method", "1"], [["Ours", "50.00"]], 1)


def test_figure_is_shown_on_light_and_on_dark_pages(tmp_path):
    figure = accuracy_against_bound({"Ours": ([0, 1], [80.0, 50.0])}, "l2 norm")
    outcome = Outcome({"1": "1"}, {}, {"a": "Ours"}, rows={"a": {"1": 50.0}}, figure=figure)
    output.write(tmp_path, "figure5", EXPERIMENTS["figure5"], outcome, Workbench(tmp_path))
    named = re.findall(r'(?:src|srcset)="(.+?)"', (tmp_path / "figure5.md").read_text())
    assert named == ["figure5-dark.svg", "figure5.svg"]
    assert all(b"</svg>" in (tmp_path / name).read_bytes() for name in named)


def test_damaged_analysis_is_made_again(tmp_path):
    config = networks.load(Network("cifar10", "lagrangian"), "quick", {})
    bench, found = Workbench(tmp_path, "quick"), Trained(config, tmp_path, data.load(config.data), {}, None)

    def measure(keys, logits_fn, images, labels):
        return {"mean": images.mean((1, 2, 3)), "noise": jax.vmap(jax.random.normal)(keys)}

    first = bench.analyse(found, "mean", {}, measure)
    assert len(first["mean"]) == config.evaluation.examples
    assert bench.analyse(found, "mean", {}, None)["seconds"] == first["seconds"]  # kept
    path = tmp_path / "analysis" / "mean.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"mean.npz is damaged and is made again"):
        again = bench.analyse(found, "mean", {}, measure)
    np.testing.assert_array_equal(again["noise"], first["noise"])
    with pytest.raises(ValueError, match=r"center is None there, 1\.0 here"):
        bench.analyse(found, "mean", {"center": 1.0}, measure)


def test_step_sizes_are_the_ones_that_hurt_most_on_images_that_are_not_tested():
    """Table 4, with results made up: the third step size of PGD and the last of MPGD leave the fewest correct."""
    asked = []

    def attack(found, rows, grid=False):
        asked.append((grid, rows))
        correct = {row.name: 5 if row.name.endswith("_2" if row.attack == "pgd_linf" else "_8") else 7 for row in rows}
        results = [
            SimpleNamespace(name=r.name, parameters=r.parameters, correct=correct[r.name], accuracy=0.5) for r in rows
        ]
        return Found(results)

    class Found(dict):
        def __init__(self, results):
            super().__init__({result.name: result for result in results})
            self.attacks, self.data, self.failures = results, {"examples": 10}, ()

        def to_json(self):
            return {"data": self.data, "attacks": []}

    bench = Workbench(pathlib.Path("nowhere"))
    config = networks.load(Network("cifar10", "pgd_l2"), "paper", {})
    dataset = data.load(networks.load(Network("cifar10", "pgd_l2"), "quick", {}).data)
    found = Trained(config, pathlib.Path("nowhere"), dataset, None, None)
    bench.attack = attack
    bench.each = lambda wanted: [(wanted[0], found)]
    outcome = EXPERIMENTS["table4"].make(bench, EXPERIMENTS["table4"].work[:2])
    (grid, tried), (test, chosen) = asked
    assert (grid, test) == (True, False)
    assert len(tried) == 4 * 9
    assert {row.name: row.parameters["step_size"] * 255 for row in chosen} == pytest.approx(
        {"pgd_linf_small_searched": 8 / 20, "pgd_linf_large_searched": 16 / 20}
        | {"mpgd_small_searched": 2 * 8, "mpgd_large_searched": 2 * 16}
    )
    assert set(outcome.rows["cifar10:pgd_l2"]) == set(paper.TABLE4["cifar10:pgd_l2"])


@pytest.mark.parametrize("validation", [0, 32])
def test_parameters_are_chosen_on_images_that_are_not_tested(validation, tmp_path):
    config = networks.load(
        Network("cifar10", "lagrangian"), "quick", {"digits": [("data.validation", str(validation))]}
    )
    dataset = data.load(config.data)
    # As files are often listed: one class after the other.
    held_out, train = (
        part.take(np.argsort(part.labels, kind="stable")) for part in (dataset.validation, dataset.train)
    )
    dataset = dataset._replace(validation=held_out, train=train)
    bench = Workbench(tmp_path, "quick")
    found = Trained(config, tmp_path, dataset, None, None)
    grid = bench.grid_images(found)
    assert np.ptp(np.bincount(grid.labels, minlength=10)) <= 1
    assert len(grid.labels) == config.evaluation.examples
    assert not set(grid.indices) & set(bench.test_images(found).indices)
    assert set(grid.indices) <= set((dataset.validation if validation else dataset.train).indices)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Table 5 for one method, on a network that compiles fast: (arguments, folder)."""
    folder = tmp_path_factory.mktemp("reproduce")
    models.MODELS["tiny"] = functools.partial(ResNet, stages=(1,), width=4)
    arguments = ["table5", "--preset=quick", "--methods=lagrangian", "--digits.network.name=tiny"]
    arguments += [f"--workdir={folder}"]
    assert door.main(arguments) == 0
    yield arguments, folder
    del models.MODELS["tiny"]


def test_result_says_what_it_is_of(quick):
    _, folder = quick
    found = json.loads((folder / "table5.json").read_text())
    assert {"versions", "device", "seconds", "preset", "remarks"} <= set(found)
    network = found["networks"]["cifar10-lagrangian"]
    assert network["data"]["examples"] == 12
    assert "digits" in network["data"]["remark"]
    assert network["training"]["steps"] == 4
    assert network["seed"] == 0
    assert len(network["attacks"]) == 6
    (row,) = (row for row in found["rows"] if row["row"] == "lagrangian")
    assert row["paper"] == paper.TABLE5["lagrangian"]
    for key, value in row["here"].items():
        assert row["difference"][key] == value - row["paper"][key]
        assert round(value * 12 / 100, 6) % 1 == 0  # per cent of 12 images
    for suffix in ("md", "tex", "csv"):
        assert "62.39" in (folder / f"table5.{suffix}").read_text()


def test_what_is_done_is_not_done_again(quick, monkeypatch, capsys):
    arguments, folder = quick
    before = (folder / "table5.json").read_text()
    monkeypatch.setattr(workbench, "train_and_keep", None)
    assert door.main(arguments) == 0
    assert (folder / "table5.json").read_text() == before
    assert door.main([*arguments, "--dry-run"]) == 0
    assert f"trained, in {folder / 'networks' / 'cifar10-lagrangian'}" in capsys.readouterr().out


def test_network_elsewhere_is_used_and_another_configuration_is_not(quick, tmp_path, capsys):
    arguments, folder = quick
    elsewhere = folder / "networks" / "cifar10-lagrangian"
    bench = Workbench(tmp_path, "quick", {"digits": [("network.name", "tiny")]}, {"cifar10-lagrangian": elsewhere})
    assert bench.trained(Network("cifar10", "lagrangian")).summary["steps"] == 4
    assert not (tmp_path / "networks").exists()
    assert door.main([*arguments, "--digits.optimizer.learning_rate=0.5"]) == 1
    message = capsys.readouterr().err
    assert "belongs to another configuration: optimizer.learning_rate: 0.1 there, 0.5 here" in message
    assert message.count("\n") == 1


def test_results_of_a_work_directory_elsewhere_stay(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    bench = Workbench(tmp_path / "paper", used={"cifar10-lagrangian": tmp_path})
    bench.report(Trained(None, tmp_path, None, None, None), None)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_missing_data_is_one_line(tmp_path, capsys):
    arguments = ["table2", f"--workdir={tmp_path / 'out'}", f"--imagenet100.data.dir={tmp_path}"]
    assert door.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.count("imagenet2012: not found") == 1  # once, not once a network
    assert not (tmp_path / "out" / "table2.json").exists()


def test_what_cannot_be_made_is_told_at_the_end_and_costs_nothing_else(tmp_path, monkeypatch, capsys):
    def missing(bench, work):
        raise data.DataError("imagenet2012: not found")

    def partly(bench, work):
        bench.left_out.append("imagenet100: imagenet2012: not found")
        return Outcome({"l2_1": "l2 1"}, paper.TABLE5, paper.METHODS, rows={"pat": {"l2_1": 50.0}})

    for name, make in (("table2", missing), ("table5", partly)):
        monkeypatch.setitem(EXPERIMENTS, name, dataclasses.replace(EXPERIMENTS[name], make=make))
    with pytest.raises(ValueError, match=r"left out:\n  table2: imagenet2012.*\n  table5: imagenet100: imagenet2012"):
        door.make(["table2", "table5"], Workbench(tmp_path))
    assert "+3.81" in capsys.readouterr().out  # PAT: 50 here, 46.19 there
    assert not (tmp_path / "table2.json").exists()
    assert json.loads((tmp_path / "table5.json").read_text())["left_out"] == ["imagenet100: imagenet2012: not found"]


@pytest.mark.slow
def test_all_quick(tmp_path):
    """Every table and figure, through the door, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lagrangian_jax.reproduce", "all", "--preset=quick", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: what else runs on the machine does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30 * 60
    for name in EXPERIMENTS:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert not found["left_out"]
        assert any(row["here"] for row in found["rows"])
        if name.startswith("figure"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert b"</svg>" in (tmp_path / f"{name}.svg").read_bytes()
