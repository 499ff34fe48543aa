"""Configurations: the paper's recipe to the letter, every preset loads, fields are read by their type."""

import argparse
import itertools
import json
import re

import pytest

from lagrangian_jax import attacks, data, distances, evaluation, methods, models
from lagrangian_jax import config as configuration
from lagrangian_jax.build import build_regularisation
from lagrangian_jax.methods.regularisation import Regularisation
from lagrangian_jax.workdir import open_workdir


def _options(name):
    """Every method and preset that the docstring and the table of a configuration offer."""
    module = configuration.packaged() / f"{name}.py"
    known_presets = ("early_stopping", "plus", "fast", "slim", "comparison", "smoke")
    presets = [p for p in known_presets if f'"{p}": ' in module.read_text()]
    known = [m for m in methods.names() if f'"{m}": ' in module.read_text()]
    return ["", *known, *presets, *(f"{m},{p}" for m, p in itertools.product(known, presets))]


NAMES = ("alexnet_cifar", "cifar10", "cifar10_three_classes", "digits", "flowers", "imagenet100", "segmentation_cifar")
CONFIGS = [(name, options) for name in NAMES for options in _options(name)]


@pytest.mark.parametrize(("name", "options"), CONFIGS)
def test_every_preset_names_what_exists(name, options):
    config = configuration.load(f"{name}:{options}")
    assert config.data.name in data.names()
    assert config.network.name in models.names()
    values = {k: v for k, v in config.method.items() if k != "name"}
    if "distance" in values:
        assert values["distance"] in distances.names()
        values["distance"] = "l2"  # the others need weights, which are the user's to bring
    methods.create(config.method.name, **values)
    build_regularisation(config).checked()
    evaluation.suites.get(config.evaluation.suite)
    if config.evaluation.checkpoint == "best":
        assert config.data.validation > 0
    if "smoke" not in options:
        assert config.train.epochs > config.train.clean_epochs


def test_paper_recipe_for_cifar10():
    config = configuration.load("cifar10")
    assert config.network.to_dict() == {"name": "resnet18", "width": 64, "stem": "cifar"}
    assert (config.train.epochs, config.train.clean_epochs, config.train.batch_size) == (100, 3, 50)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.nesterov) == (0.1, 0.9, False)
    assert (optimizer.weight_decay, optimizer.milestones, optimizer.factor) == (2e-4, (70, 90), 0.1)
    assert (optimizer.schedule, optimizer.warmup) == ("step", 0.0)
    assert config.augmentation.to_dict() == {"padding": 4, "mode": "reflect", "flip": True}
    attack = {"steps": 5, "step_size": 0.15, "multiplier": 2.0, "decay": 0.1, "init_std": 0.01, "kappa": 1.0}
    assert config.method.to_dict() == {"name": "lagrangian", "statistics": "train", "multiplier_spread": 1.0, **attack}
    assert Regularisation(**config.regularisation) == Regularisation(0.0, 0.0, 0.0)
    assert (config.precision, config.train.average, config.data.validation) == ("float32", 0.0, 0)
    assert (config.evaluation.suite, config.evaluation.checkpoint) == ("cifar10_table1", "last")


def test_paper_recipe_for_imagenet100():
    config = configuration.load("imagenet100")
    assert config.network.to_dict() == {"name": "resnet34", "width": 64, "stem": "imagenet"}
    assert (config.train.epochs, config.train.clean_epochs, config.train.batch_size) == (90, 3, 128)
    assert (config.optimizer.weight_decay, config.optimizer.milestones) == (1e-4, (30, 60, 80))
    assert (config.method.multiplier, config.method.step_size, config.data.image_size) == (0.45, 0.25, 224)
    assert config.evaluation.suite == "imagenet100_table2"


def test_methods_of_each_configuration():
    table1 = set(methods.names())
    offered = {name: {m for m in methods.names() if m in _options(name)} for name in NAMES}
    assert offered["cifar10"] == offered["digits"] == table1
    assert offered["imagenet100"] == {"standard", "lagrangian", "pgd_linf", "pgd_l2", "pat", "jpeg"}
    assert offered["flowers"] == {"standard", "lagrangian", "pgd_linf", "pgd_l2"}
    assert offered["cifar10_three_classes"] == {"standard", "lagrangian", "pgd_l2", "pat", "carlini_wagner"}


@pytest.mark.parametrize("name", methods.names())
def test_digits_take_the_parameters_of_cifar10_but_for_what_their_docstring_says(name):
    digits, cifar10 = (configuration.load(f"{config}:{name}").method for config in ("digits", "cifar10"))
    sizes = {"steps", "step_size_linf", "step_size_l2", "step_size_l1"}
    other = {"msd": sizes, "ddn": {"steps"}, "carlini_wagner": {"steps", "search_steps"}, "iaat": {"warmup"}}
    assert {field for field in digits if digits[field] != cifar10[field]} == other.get(name, set())


@pytest.mark.parametrize("name", [m for m in methods.names() if m != "standard"])
def test_the_comparison_gives_every_attack_five_gradients(name):
    config = configuration.load(f"cifar10:{name},comparison")
    assert config.method.steps == 5
    budget = {"pgd_linf": 10 / 255, "pgd_l2": 1.3, "trades": 0.031, "mart": 0.031}.get(name)
    if budget is not None:  # smaller steps would not cross the ball
        assert config.method.bound == budget
        assert config.method.steps * config.method.step_size > 2 * budget


@pytest.mark.parametrize("name", ["carlini_wagner", "lagrangian", "pgd_l2", "pat"])
def test_the_comparison_on_three_classes_is_that_of_all_ten_but_for_the_data(name):
    three, ten = (configuration.load(f"{config}:{name},comparison") for config in ("cifar10_three_classes", "cifar10"))
    assert three.method == ten.method
    assert three.network == ten.network
    assert (three.data.name, three.evaluation.suite) == ("cifar10_three_classes", "lp")
    assert (three.evaluation.examples, three.train.epochs) == (1000, 4)


def test_images_are_held_out_only_to_choose_a_checkpoint():
    for name, options in (("cifar10", ""), ("imagenet100", ""), ("flowers", ""), ("flowers", "pgd_l2,slim")):
        config = configuration.load(f"{name}:{options}")
        assert (config.data.validation, config.evaluation.checkpoint) == (0, "last"), (name, options)
    config = configuration.load("flowers:early_stopping")
    assert (config.data.validation, config.evaluation.checkpoint) == (1000, "best")


def _parse(*arguments):
    return configuration.parse(arguments, argparse.ArgumentParser())[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cifar10:pgd_linf,early_stopping"], ("pgd_linf", 10 / 255, 10, 2.5 / 255, True)),
        (["cifar10:pgd_linf,early_stopping", "method.bound=8/255"], ("pgd_linf", 8 / 255, 10, 2.5 / 255, True)),
        (["cifar10:pgd_l2,early_stopping,comparison"], ("pgd_l2", 1.3, 5, 0.65, True)),
        (["cifar10:pgd_l2,comparison,early_stopping"], ("pgd_l2", 1.3, 5, 0.65, True)),
        (["imagenet100:pgd_l2,early_stopping", "method.random_start=false"], ("pgd_l2", 4.0, 10, 1.0, False)),
    ],
)
def test_early_stopping_selects_by_the_attack_that_is_trained_with(arguments, expected):
    config = _parse(f"--config={arguments[0]}", *(f"--config.{field}" for field in arguments[1:]))
    validation = configuration.plain(config)["validation"]
    names = ("attack", "bound", "steps", "step_size", "random_start")
    assert json.loads(json.dumps(validation)) == dict(zip(names, expected, strict=True))
    attacks.create(validation.pop("attack"), **validation)
    assert {name: config.method[name] for name in validation} == validation
    assert (config.data.validation, config.evaluation.checkpoint) == (1000, "best")


@pytest.mark.parametrize("order", [1, -1])
def test_validation_has_fields_of_its_own(order):
    fields = ["--config.validation.steps=40", "--config.method.steps=7"][::order]
    config = _parse("--config=cifar10:pgd_l2,early_stopping", *fields)
    assert (config.validation.steps, config.method.steps, config.validation.bound) == (40, 7, 1.3)
    assert configuration.load("cifar10:trades,early_stopping").validation.attack == "pgd_l2"


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("seed", "7", 7),
        ("deterministic", "true", True),
        ("deterministic", "False", False),
        ("train.average", "0.99", 0.99),
        ("train.average", "1", 1.0),
        ("validation.bound", "8/255", 8 / 255),
        ("optimizer.milestones", "(3, 5)", (3, 5)),
        ("optimizer.milestones", "4", (4,)),
        ("data.dir", "a/b", "a/b"),
        ("method.multiplier", "1e-1", 0.1),
    ],
)
def test_fields_are_read_as_the_type_they_have(field, text, value):
    config = configuration.load("cifar10")
    configuration.set_field(config, field, text)
    holder = config
    for name in field.split("."):
        holder = holder[name]
    assert holder == value
    assert type(holder) is type(value)


def _file(folder, body, head="def get_config(options=''):"):
    """Writes a user's configuration file, which starts from a packaged one."""
    path = folder / "mine.py"
    begin = "    c = config.base('digits:smoke')"
    lines = ["from lagrangian_jax import config", head, begin, f"    {body}", "    return c"]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c.train.epoch = 3", "unknown field in config.train: 'epoch'; did you mean 'epochs'?"),
        ("c.trian = 3", "unknown field in config: 'trian'; did you mean 'train'?"),
        ("c.network.widht = 4", "unknown field in config.network: 'widht'; did you mean 'width'?"),
        ("c.network.num_classes = 4", "unknown field in config.network: 'num_classes'"),
        ("c.network.name = 'resnet19'", "unknown network 'resnet19'; did you mean 'resnet18'?"),
        ("c.method.multipler = 1.0", "unknown field in config.method: 'multipler'; did you mean 'multiplier'?"),
        ("c.data.validaton = 64", "unknown field in config.data: 'validaton'; did you mean 'validation'?"),
        ("c.regularisation.label_smooting = 0.1", "did you mean 'label_smoothing'?"),
        ("del c.seed", "config lacks the field 'seed'; begin with lagrangian_jax.config.default() or base(NAME)"),
        ("c.train = type(c)({'epochs': 3})", "config.train lacks the field 'average'; begin with"),
        ("c.method = type(c)({'steps': 3})", "unknown method ''"),
        ("c = {'seed': 0}", "mine.py: get_config returned dict; expected a ConfigDict"),
        ("c = None", "mine.py: get_config returned NoneType; expected a ConfigDict"),
    ],
)
def test_a_file_sets_fields_that_exist(tmp_path, body, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        configuration.load(str(_file(tmp_path, body)))
    assert len(str(raised.value).splitlines()) == 1


def test_what_a_file_may_add(tmp_path):
    """Parameters of the network, of the validation's attack, of own data; rates by submodule."""
    for body in (
        "c.network.normalisation = 'half'",
        "c.validation.random_start = True",
        "c.optimizer.relative_rates = {'head': 0.1}",
        "c.data.cache_dir = '/tmp'",
        "c.data.update(name='mine', sheet='labels.csv')",
    ):
        configuration.load(str(_file(tmp_path, body)))


def test_a_file_without_options(tmp_path):
    """As the tutorials of ml_collections write it."""
    path = _file(tmp_path, "c.train.epochs = 3", head="def get_config():")
    assert configuration.load(str(path)).train.epochs == 3
    with pytest.raises(ValueError, match=r"mine\.py: its get_config\(\) takes no options, .*; got 'smoke'$"):
        configuration.load(f"{path}:smoke")


def test_a_file_that_defines_no_configuration(tmp_path):
    path = _file(tmp_path, "", head="def configuration():")
    with pytest.raises(ValueError, match=r"mine\.py: expected a Python file that defines get_config\(options\)$"):
        configuration.load(str(path))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c.train.epochs = 'x'", "Could not override field 'epochs'"),
        ("c.trian.epochs = 3", "no such field"),
        ("c['trian'].epochs = 3", "no such field"),
        ("c.lock().train.epoch = 3", "no such field"),
    ],
)
def test_what_a_file_may_not_do_to_a_configuration_is_one_line(tmp_path, body, expected):
    with pytest.raises(ValueError, match=re.escape(f"mine.py, line 4, {body}: {expected}")) as raised:
        configuration.load(str(_file(tmp_path, body)))
    assert len(str(raised.value).splitlines()) == 1


def test_other_errors_of_a_file_keep_their_traceback(tmp_path):
    with pytest.raises(TypeError, match="unsupported operand"):
        configuration.load(str(_file(tmp_path, "c.train.epochs = 3 + 'x'")))


def test_none_is_for_parameters_that_take_it():
    config = configuration.load("cifar10:ddn")
    configuration.set_field(config, "method.max_norm", "none")
    assert config.method.max_norm is None
    for field in ("train.average", "train.batch_size", "optimizer.momentum", "data.validation", "seed"):
        with pytest.raises(ValueError, match=rf"config\.{field}: expected (int|float), like .*; got 'none'"):
            configuration.set_field(config, field, "none")


def test_a_method_brings_its_parameters():
    config = configuration.load("cifar10:standard")
    assert config.method.to_dict() == {"name": "standard"}
    with pytest.raises(ValueError, match=r"unknown field in config\.method: 'multiplier'"):
        configuration.set_field(config, "method.multiplier", "1")


def test_another_method_is_chosen_after_the_colon():
    with pytest.raises(
        configuration.UsageError, match=r"method\.name: .* after the colon, .*:pgd_l2, .* is 'pgd_linf'"
    ):
        _parse("--config=cifar10:pgd_linf", "--config.method.name=pgd_l2")
    with pytest.raises(configuration.UsageError, match="unknown method 'pgd_l3'; did you mean 'pgd_l2'"):
        _parse("--config=cifar10:pgd_linf", "--config.method.name=pgd_l3")
    assert _parse("--config=cifar10:trades", "--config.method.name=trades").method.bound == 0.031


@pytest.mark.parametrize(("options", "second"), [("plus,trades", "trades"), ("mart,plus,trades", "trades")])
def test_one_method_before_the_presets(options, second):
    with pytest.raises(
        ValueError, match=f"^'{second}' is a method: expected one, before the presets; got '{options}'$"
    ):
        configuration.load(f"cifar10:{options}")


def test_differences_name_fields_and_both_values():
    ours = configuration.plain(configuration.load("cifar10"))
    theirs = configuration.plain(configuration.load("cifar10:lagrangian,slim"))
    lines = configuration.differences(ours, theirs)
    assert "network.width: 16 there, 64 here" in lines
    assert configuration.differences(ours, ours) == []


def test_a_work_directory_from_before_a_parameter_goes_on_with_its_default(tmp_path):
    config = configuration.load("digits:pgd_l2").unlock()
    before = configuration.plain(config)
    del before["method"]["bound_spread"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    with open_workdir(tmp_path, config):
        pass
    (tmp_path / "data.json").write_text("{}")
    config.method.bound_spread = 2.0
    with (
        pytest.raises(ValueError, match=r"method\.bound_spread: 1\.0 there, 2\.0 here"),
        open_workdir(tmp_path, config),
    ):
        pass
