"""The README and the documentation: their code runs, their commands are ones that work, nothing is missing."""

import argparse
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax import data, methods, report

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "results/*/*.md") for path in ROOT.glob(pattern)
)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FENCE = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^\1```$")
# Pages whose Python takes longer than a few seconds.
SLOW = {"docs/concepts.md", "docs/evaluation.md", "docs/own_network.md", "docs/adding_a_method.md"}
# What a command may be besides Python: checked by other tests, or not ours.
TOOLS = {".", "git", "mypy", "pre-commit", "ruff", "shellcheck", "mkdocs", "cd", "docker"}


def name(page):
    return page.relative_to(ROOT).as_posix()


@functools.cache
def blocks(page):
    """(language, code) of each code block."""
    return [
        (language, re.sub(f"(?m)^{indent}", "", code)) for indent, language, code in FENCE.findall(page.read_text())
    ]


def commands(page):
    """The words of each shell command of a page, without variables set in front."""
    for code in (code for language, code in blocks(page) if language == "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words


COMMANDS = {shlex.join(words): words for page in PAGES for words in commands(page)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_code_block_is_of_a_kind_that_is_tested(page):
    assert len(re.findall(r"(?m)^ *```", page.read_text())) == 2 * len(blocks(page))
    assert {language for language, _ in blocks(page)} <= {"python", "bash", "bibtex", "text", ""}


# ---- Python ------------------------------------------------------------------------------------


def weights(path, network):
    """Writes a file of weights for a page to load; the name does not tell its format."""
    shapes = jax.eval_shape(lambda key: network.init(key, np.zeros((1, 32, 32, 3), np.float32)), jax.random.key(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    lj.interop.save(path.with_suffix(""), network, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes))
    path.with_suffix("").rename(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run in; what a page registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    registries = lj.attacks.ATTACKS, methods.METHODS, data.DATASETS, lj.evaluation.SUITES
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


def run_python(page, folder):
    """All Python blocks of a page, in order, in one namespace."""
    if page.name == "own_network.md":
        weights(folder / "network", lj.models.create("resnet20", width=4, normalisation="cifar10"))
        network = lj.models.create("resnet20", width=4, normalisation="cifar10")
        lj.interop.save("resnet20_width4.safetensors", network, lj.interop.load("network", network))
        pytest.importorskip("flatbuffers", reason="StableHLO files need flatbuffers (pip install '.[export]')")
    if page.name == "evaluation.md":
        weights(folder / "models/cifar10/Linf/Wong2020Fast.pt", lj.interop.robustbench.network("Wong2020Fast"))
    namespace: dict = {"__name__": "__main__"}
    for number, (language, code) in enumerate(blocks(page)):
        if language == "python":
            exec(compile(code, f"{name(page)}, block {number}", "exec"), namespace)


WITH_PYTHON = [page for page in PAGES if any(language == "python" for language, _ in blocks(page))]


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if name(page) not in SLOW], ids=name)
def test_python(page, folder):
    run_python(page, folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if name(page) in SLOW], ids=name)
def test_python_that_takes_longer(page, folder):
    run_python(page, folder)


# ---- Commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_command(words, monkeypatch, capsys, tmp_path):
    """Everything up to the work itself: files and modules are there, configurations load, flags and fields exist."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))  # an example registers its own
    program, *arguments = words
    if program in ("python", "python3") and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:], monkeypatch, capsys, tmp_path)
    elif program in ("python", "bash") or "/" in program:
        script, *rest = arguments if program in ("python", "bash") else words
        assert (ROOT / script).is_file(), script
        check_fields([argument for argument in rest if argument.startswith("--config")])
    elif program == "pip":
        extras = re.findall(r"\[(\w+)\]", shlex.join(arguments))
        assert set(extras) <= set(PYPROJECT["project"]["optional-dependencies"])
    elif program == "pytest":
        files = [argument for argument in arguments if argument.startswith("tests/")]
        assert all((ROOT / file).is_file() for file in files)
    else:
        assert program in TOOLS, program


def check_module(module, arguments, monkeypatch, capsys, tmp_path):
    if module in ("lagrangian_jax.main", "lagrangian_jax.evaluate"):
        begun = []
        monkeypatch.setattr(configuration, "prepare_jax", lambda config: None)
        monkeypatch.setattr(configuration, "guarded", lambda function, config, *rest: begun.append(config) or 0)
        assert importlib.import_module(module).main(arguments) == 0, capsys.readouterr().err
        lj.evaluation.suites.get(begun[0].evaluation.suite)
        methods.create(
            begun[0].method.name, **{k: v for k, v in begun[0].method.items() if k not in ("name", "weights")}
        )
    elif module == "lagrangian_jax.reproduce":
        monkeypatch.setattr(configuration, "prepare_jax", lambda config: None)
        monkeypatch.setattr(configuration, "guarded", lambda function, *rest: 0)
        (tmp_path / "weights.safetensors").touch()  # stands for the networks that a command says are there
        arguments = [re.sub("(--use=.*)=.*", rf"\1={tmp_path}", argument) for argument in arguments]
        assert importlib.import_module("lagrangian_jax.reproduce.__main__").main(arguments) == 0, (
            capsys.readouterr().err
        )
    elif module == "lagrangian_jax.report":
        given = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(report, "write", lambda workdir: given.append(workdir) or "")
        monkeypatch.setattr(
            report, "compare", lambda workdirs: given.extend(workdirs) or report.Table(("Run",), (("one",),))
        )
        assert importlib.import_module("lagrangian_jax.report.__main__").main(arguments) == 0
        assert given
    elif module != "venv":
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        source = pathlib.Path(spec.origin).read_text()
        flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
        assert [flag for flag in flags if not flag.startswith("--config") and f'"{flag}"' not in source] == []
        check_fields([argument for argument in arguments if argument.startswith("--config")])


def check_fields(arguments):
    if arguments:
        configuration.parse(arguments, argparse.ArgumentParser())


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=name)
def test_shell_syntax(page):
    for language, code in blocks(page):
        if language == "bash":
            subprocess.run(["bash", "-n"], input=code, text=True, check=True)


@pytest.mark.slow
def test_the_own_data_example_trains(tmp_path):
    command = [sys.executable, "-m", "lagrangian_jax.main", "--config=examples/own_data.py:pgd_l2,smoke"]
    subprocess.run([*command, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


# ---- What must be there ------------------------------------------------------------------------


def sections(page):
    return re.findall(r"(?m)^#+ `(\w+)` \{ #\1 \}$", (ROOT / "docs" / page).read_text())


def test_every_attack_has_an_entry_and_a_picture():
    assert sorted(sections("attacks.md")) == sorted(lj.attacks.names())
    pictures = {path.stem for path in (ROOT / "docs" / "pictures").glob("*.webp")}
    assert pictures == {*lj.attacks.names(), "overview"}
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()) < 1_500_000


def test_what_users_call_has_an_example_that_runs():
    """In its docstring, where pytest runs it."""
    attacks = {**lj.attacks.ATTACKS, **lj.attacks.STAGED}
    losses = [f for f in vars(lj.losses).values() if inspect.isfunction(f) and not f.__name__.startswith("_")]
    doors = [package.create for package in (lj.attacks, lj.distances, lj.models, methods)]
    functions = [*attacks.values(), *losses, *doors, lj.evaluation.run, lj.interop.load]
    without = {function.__name__ for function in functions if ">>> " not in function.__doc__}
    assert without == {"none"}, "lj.attacks.create('none') returns the images"


def test_every_method_has_an_entry_and_its_statistics():
    assert sections("methods.md") == list(methods.names())
    text = (ROOT / "docs" / "methods.md").read_text()
    for method in methods.names():
        default = methods.parameters(method).get("statistics")
        assert re.search(rf"(?m)^\| `{method}` \| {f'`{default}`' if default else 'no attack'} \|", text), method


@pytest.mark.parametrize("suite", lj.evaluation.suites.names())
def test_every_suite_is_described(suite):
    assert f"`{suite}`" in (ROOT / "docs" / "evaluation.md").read_text()


def test_citation_and_version_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {lj.__version__}\n" in citation
    assert PYPROJECT["project"]["version"] == lj.__version__
    assert f"\n## {lj.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert PYPROJECT["project"]["license"] == "MIT"


def test_docstrings_for_the_site():
    """reStructuredText becomes Markdown; a doctest and a table stay as they are, in fences."""
    pytest.importorskip("griffe", reason="the documentation's packages are not installed (pip install '.[docs]')")
    markdown = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["markdown"]
    text = "A :math:`x`, ``y``:\n\n.. math::\n  a\n\n  b\n\nArgs:\n  one, two: both.\n\n>>> 1\n1\n"
    assert markdown(text) == (
        "A $x$, `y`:\n\n\n$$\na\n$$\n\n\n$$\nb\n$$\n\nArgs:\n  one: both.\n  two: both.\n\n```pycon\n>>> 1\n1\n```"
    )
    assert markdown("== ==\na  b\n== ==\n") == "```text\na  b\n```"


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    if shutil.which("mkdocs") is None:
        pytest.skip("the documentation's packages are not installed (pip install '.[docs]')")
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "attacks" / "index.html").read_text()
    assert page.count("<math") > 50
    for left in (".. math::", ":math:", "\\[", "$$"):
        assert left not in page
