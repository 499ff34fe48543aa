"""What a step of each method costs: what is measured is what was asked for, and what cannot be is one line."""

import json

import pytest

from benchmarks import methods
from lagrangian_jax import config as configuration


@pytest.mark.parametrize("name", methods.NAMES)
def test_a_method_is_measured_with_the_configuration_s_presets(name):
    method = "pgd_linf" if name == "pgd_5" else name
    expected = configuration.load(f"cifar10:{method},fast")
    expected.train.batch_size = 8
    if name == "pgd_5":
        expected.method.steps = 5
    for spec in ("cifar10:lagrangian,fast", "cifar10:fast"):
        found = methods.measured(name, spec, ["--config.train.batch_size=8"])
        assert configuration.plain(found) == configuration.plain(expected)
    assert expected.method.get("statistics", "eval") == "eval"
    found = methods.measured(name, "cifar10", ["--config.train.batch_size=50"])
    assert configuration.plain(found) == configuration.plain(methods.paper(name))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods=foo"], "unknown method 'foo'"),
        (["--methods=standard,pgd_lin"], "unknown method 'pgd_lin'; did you mean 'pgd_linf'?"),
        (
            ["--methods=pgd_l2,lagrangian", "--config.method.bound=1"],
            "lagrangian: unknown field in config.method: 'bou",
        ),
        (["--methods=ddn", "--config.method.statistics=train"], "method 'ddn': statistics must be 'eval' or 'batch'"),
        (["--methods=standard,ddn", "--config.method.name=ddn"], "standard: config.method.name: choose the method"),
        (
            ["--methods=standard", "--config=cifar10:fats"],
            "standard: unknown method or preset 'fats'; did you mean 'fa",
        ),
        (["--methods=standard", "--confg=cifar10"], "unknown argument '--confg=cifar10'"),
    ],
)
def test_what_not_all_methods_take_is_one_line(capfd, arguments, expected):
    assert methods.main(["--rounds=0", *arguments]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_seconds_of_methods_are_of_what_the_result_says(tmp_path):
    fields = ["--config=cifar10:lagrangian,fast", "--config.network.width=2", "--config.train.batch_size=2"]
    output = tmp_path / "methods.json"
    arguments = [*fields, "--methods=pgd_linf,pgd_5", "--rounds=1", "--config.precision=float32"]
    assert methods.main([*arguments, f"--output={output}"]) == 0
    result = json.loads(output.read_text())
    assert [result["methods"][name]["gradients"] for name in ("pgd_linf", "pgd_5")] == [10, 5]
    assert all(row["seconds"] > 0 for row in result["methods"].values())
    measured = result["measured"]
    assert [measured[name] for name in ("config", "batch_size", "precision")] == [
        "cifar10:lagrangian,fast",
        2,
        "float32",
    ]
    parameters = [(each["steps"], each["statistics"]) for each in measured["methods"].values()]
    assert parameters == [(10, "eval"), (5, "eval")]
