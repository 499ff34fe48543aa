"""Reports: tables to the digit, damage and hostile strings, and the page in a real browser."""

import csv
import io
import itertools
import json
import pathlib
import re
import runpy
import shutil
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats

from lagrangian_jax import report
from lagrangian_jax.report import __main__ as command
from lagrangian_jax.report import figures, tables
from lagrangian_jax.report.formats import Table

fake = runpy.run_path(str(pathlib.Path(__file__).with_name("report_workdir.py")))["fake"]


def change(path: pathlib.Path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = fake(tmp_path_factory.mktemp("report") / "run", failures=["attack lpa: out of memory, batch halved to 64"])
    report.write(folder)
    return folder


def test_terminal_table(workdir):
    *lines, between, note = report.write(workdir).splitlines()
    assert (between, note) == ("", "note: attack lpa: out of memory, batch halved to 64")
    assert len({len(line) for line in lines[1:12]}) == 1, "columns are not aligned"
    assert lines[0].split() == ["Attack", "Correct", "Accuracy", "95%", "interval", "Mean", "l2", "Seconds"]
    assert lines[5] == "PGD l2, 1.0           512/1000     51.20  48.10 to 54.29    1.000     12.6"
    assert lines[-3].startswith("Worst case")
    assert [line.split() for line in lines[-2:]] == [["Unseen", "mean", "55.37"], ["Union", "mean", "50.38"]]
    assert all(len(line) <= 100 for line in lines)


def test_terminal_table_without_attacks(tmp_path):
    summary = {"worst_case": {"correct": 1, "total": 2}, "unseen_mean": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({"attacks": [], "summary": summary}))
    assert report.write(tmp_path) == "No attack was evaluated."


def test_robustness_table_has_the_papers_columns_in_order(workdir):
    table = tables.robustness(report.read(workdir))
    names = ["Clean", "LPA", "linf", "l2", "Recolor", "StAdv", "Elastic", "JPEG", "Noise", "Blur", "PGD0"]
    assert list(table.header) == [*names, "Unseen mean", "Union mean", "Worst case"]
    values = "80.30 21.20 43.80 51.20 69.10 41.60 36.80 61.40 70.70 63.60 44.40 55.37 50.38"
    assert " ".join(table.rows[0][:-1]) == values


def test_means_are_explained_by_the_columns_they_are_over(workdir, tmp_path):
    unseen = 691 + 416 + 368 + 614 + 707 + 636 + 444
    run = report.read(workdir)
    assert tables.run_means(run) == {
        "Unseen mean": pytest.approx(unseen / 7000),
        "Union mean": pytest.approx((unseen + 212 + 438 + 512) / 10000),
    }
    assert "Unseen mean: the plain mean of Recolor, StAdv, Elastic, JPEG, Noise, Blur, PGD0." in tables.explanation(run)
    assert "these and LPA, linf, l2." in tables.explanation(run)
    keys = [key for key in tables.COLUMNS if key not in ("pgd0", "lagrangian", "fgsm", "mpgd")]
    attacks = [{"name": key, "column": key, "correct": 1, "total": 2} for key in keys]
    (tmp_path / "results.json").write_text(json.dumps({"attacks": attacks, "summary": {"unseen_mean": 0.5}}))
    text = tables.explanation(report.read(tmp_path))
    assert "mean of Recolor, StAdv, Elastic, Fog, Gabor, Snow, Noise, Blur." in text
    assert "these and LPA, linf, l2, JPEG." in text
    (tmp_path / "results.json").write_text(json.dumps({"attacks": attacks[:-1], "summary": {"unseen_mean": None}}))
    assert "mean" not in tables.explanation(report.read(tmp_path)), "a mean over fewer columns is another mean"
    assert not set(tables.MEANS) & set(tables.robustness(report.read(tmp_path)).header)


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (1, 360), (120, 360), (9999, 10000)])
def test_wilson_interval(correct, total):
    """Against SciPy, and its ends are the p with (share - p)^2 = z^2 p (1 - p) / n."""
    z = 1.959963984540054
    roots = np.roots([total + z * z, -(2 * correct + z * z), correct * correct / total])
    assert tables.wilson(correct, total) == pytest.approx(sorted(roots.real), abs=1e-9)
    expected = scipy.stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert tables.wilson(correct, total) == pytest.approx(tuple(expected), abs=1e-12)
    assert tables.wilson(0, 0) == (0.0, 1.0)


def test_attack_table(workdir):
    table = tables.attacks(report.read(workdir))
    row = dict(zip(table.header, table.rows[-1], strict=True))
    assert row == {
        "Attack": "PGD0, 10 pixels", "Parameters": "pixels 10, steps 20, restarts 3", "Correct": "444/1000",
        "Accuracy": "44.40", "95% interval": "41.35 to 47.50", "Mean l0": "27.1", "Mean l2": "3.900",
        "Mean linf": "0.9900", "SSIM": "0.961", "Seconds": "18.8", "Compile": "4.2", "Gradients": "60",
        "Forwards": "61", "Attacked": "803 640 512",
    }  # fmt: skip
    assert table.rows[1][table.header.index("Gradients")] == "<= 220"
    assert table.rows[2][1] == "bound 8/255, steps 40, step_size 2/255"


def _latex_cells(source):
    lines = source.splitlines()
    assert lines[0].startswith(r"\begin{tabular}{")
    assert lines[-1] == r"\end{tabular}"
    plain = re.sub(r"\\[&%$#_{}]", "", source)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines if line.endswith(r"\\")]
    assert {len(row) for row in rows} == {len(lines[0].split("{")[2]) - 1}
    return rows


def test_latex_and_csv_parse(workdir):
    run = report.read(workdir)
    for table in (tables.robustness(run), tables.attacks(run)):
        rows = list(csv.reader(io.StringIO(table.csv())))
        assert rows == [["" if cell == "–" else cell for cell in row] for row in (table.header, *table.rows)]
        assert len(_latex_cells(table.latex())) == len(table.rows) + 1
    table = Table(
        ["Name", "linf"], [[r"a & b_c \ {50%} $x$ #1 ~^", "1"], ['quote " comma, <b>', "–"]], best=frozenset({(0, 1)})
    )
    (head, first, second) = _latex_cells(table.latex())
    assert head[1] == r"$\ell_\infty$"
    assert first == [
        r"a \& b\_c \textbackslash{} \{50\%\} \$x\$ \#1 \textasciitilde{}\textasciicircum{}",
        r"\textbf{1}",
    ]
    assert second[1] == "--"
    assert list(csv.reader(io.StringIO(table.csv())))[2] == ['quote " comma, <b>', ""]
    lines = table.markdown().splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert lines[3] == '| quote " comma, &lt;b&gt; | – |'


class _Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_self_contained_and_accessible(workdir):
    text = (workdir / "report.html").read_text()
    page = _Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
        assert tag != "img" or attributes.get("alt"), "an image without a description"
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert sum(tag == "img" for tag, _ in page.tags) == 8 * (1 + 2 * 10) + 6
    words = " ".join(page.text)
    for expected in ("55.37", "resnet18 trained with lagrangian on cifar10", "batch halved to 64", "0.10.2", "✗ cat"):
        assert expected in words


def test_files_and_figures(workdir):
    names = {path.name for path in (workdir / "figures").iterdir()}
    panels = ["accuracy", "loss", "perturbation", "saturated", "learning_rate", "speed", "robustness"]
    assert names == {f"{name}{end}.svg" for name in panels for end in ("", "-dark")} | {"pictures.png"}
    for path in (workdir / "figures").glob("*.svg"):
        xml.etree.ElementTree.parse(path)
    panel = next(panel for panel in figures.training(report.read(workdir)) if panel.name == "accuracy")
    drawn = figures.render(panel, panel.size, figures.DARK).decode()
    coloured = (workdir / "figures" / "accuracy-dark.svg").read_text()
    assert re.findall("#[0-9a-f]{6}", coloured) == re.findall("#[0-9a-f]{6}", drawn)
    assert figures.LIGHT.ink not in coloured
    markdown = (workdir / "report.md").read_text()
    for link in re.findall(r"figures/[\w.-]+", markdown):
        assert (workdir / link).is_file()
    before = {path: path.read_bytes() for path in sorted((workdir / "figures").iterdir())}
    report.write(workdir)
    assert before == {path: path.read_bytes() for path in before}, "the same input gave another figure"


def test_everything_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>|`$&'
    folder = fake(tmp_path / "run", ["none", "pgd_l2"], class_names=[evil] * 10, failures=[evil])
    results = json.loads((folder / "results.json").read_text())
    results["attacks"][1] |= {"label": evil, "parameters": {evil: evil}}
    results["data"] |= {"name": evil, "remark": evil}
    results["network"]["name"] = results["versions"][evil] = results["suite"] = evil
    (folder / "results.json").write_text(json.dumps(results))
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", **{evil: evil, "nested": {evil: {evil: [evil]}}}, method=config["method"])
    report.write(folder)
    page = _Page((folder / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert "".join(page.text).count(evil) > 20
    fences = re.split(r"^`{3,}.*$", (folder / "report.md").read_text(), flags=re.MULTILINE)
    assert all("<script" not in prose for prose in fences[::2])


@pytest.mark.parametrize("kept", ["config.json", "metrics.jsonl", "results.json"])
def test_one_file_is_enough(workdir, tmp_path, kept):
    shutil.copy(workdir / kept, tmp_path)
    text = report.write(tmp_path)
    assert ("51.20" in text) == (kept == "results.json")
    page = _Page((tmp_path / "report.html").read_text())
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes} & {"attacks", "training", "settings"}
    expected = {"config.json": {"settings"}, "metrics.jsonl": {"training"}, "results.json": {"attacks"}}
    assert ids == expected[kept]
    assert "pictures" not in ids


def test_one_attack_only_and_grey_pictures(tmp_path):
    folder = fake(tmp_path / "run", ["pgd_linf"], channels=1, epochs=1)
    assert "43.80" in report.write(folder)
    table = tables.robustness(report.read(folder))
    assert list(table.header) == ["Clean", "linf", "Worst case"]
    page = _Page((folder / "report.html").read_text())
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert sum(alt.startswith("Image 10") for alt in alts) == 8
    assert not any(alt.startswith("Perturbation") for alt in alts), "there is no clean image to compare with"


def test_attacks_outside_the_papers_columns_are_their_own(tmp_path):
    attacks = [
        {"name": "none", "correct": 9, "total": 10},
        {"name": "autoattack", "label": "AutoAttack", "correct": 4, "total": 10},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"attacks": attacks}))
    table = tables.robustness(report.read(tmp_path))
    assert (list(table.header), table.rows[0]) == (["Clean", "AutoAttack"], ["90.00", "40.00"])


def test_large_pictures_are_reduced(tmp_path):
    folder = fake(tmp_path / "run", ["none", "pgd_l2"], side=224, epochs=1)
    report.write(folder)
    assert (folder / "report.html").stat().st_size < 1_500_000
    sources = [a["src"] for tag, a in _Page((folder / "report.html").read_text()).tags if tag == "img"]
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 8 * 3


def test_damage_is_noted_and_survived(tmp_path):
    folder = fake(tmp_path / "run", ["none", "pgd_l2"], epochs=1)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"kind": "train", "step": 100, "loss": NaN, "new": [1]}\n{"kind": "other", "step": 1}\n{"kind": "tra'
        )
    (folder / "evaluation" / "pgd_l2.npz").write_bytes(b"PK\x03\x04 torn")
    report.write(folder)
    notes = report.read(folder).notes
    assert [note.split(":")[0] for note in notes] == ["metrics.jsonl", "evaluation/pgd_l2.npz could not be read"]
    text = (folder / "report.html").read_text()
    assert all(note.split(":")[0] in text for note in notes)
    (folder / "config.json").write_text('{"method": ')
    assert any("config.json could not be read" in note for note in report.read(folder).notes)


def test_resumed_runs_count_a_step_once(tmp_path):
    lines = [(1, 3.0), (2, 2.0), (3, 9.0), (2, 1.5), (3, 1.0)]  # stopped after 3, resumed from 1
    text = "".join(json.dumps({"kind": "train", "step": step, "loss": loss}) + "\n" for step, loss in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (panel,) = figures.training(report.read(tmp_path))
    np.testing.assert_array_equal([panel.curves[0].x, panel.curves[0].y], [[1, 2, 3], [3.0, 1.5, 1.0]])
    assert panel.axis == "step"


def test_long_curves_are_averaged():
    x = np.arange(1001.0)
    thin, mean = figures._thin(x, 2 * x)
    assert len(thin) == 400
    np.testing.assert_allclose(mean, 2 * thin)
    assert thin[0] == pytest.approx(0.5)


def test_wrong_directories(tmp_path, capsys):
    with pytest.raises(ValueError, match="not a work directory"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match="found nothing"):
        report.write(tmp_path / "absent")
    (tmp_path / "results.json").write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="schema 2, this version reads 1"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": 1, "attacks": [{"name": "none"}]}')
    with pytest.raises(ValueError, match="an attack without correct, total"):
        report.write(tmp_path)
    for arguments in ([str(tmp_path)], [str(tmp_path), str(tmp_path / "absent")]):
        assert command.main(arguments) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1


def test_a_table_that_cannot_be_written_is_one_line(workdir, tmp_path, capsys):
    target = tmp_path / "absent" / "table.md"
    assert command.main([str(workdir), f"--output={target}"]) == 1
    assert capsys.readouterr().err == f"error: cannot write {target}: No such file or directory\n"


def test_compare(workdir, tmp_path, capsys):
    other = fake(tmp_path / "other" / "run", ["none", "pgd_linf", "pgd_l2"], epochs=1)
    results = json.loads((other / "results.json").read_text())
    results["training"]["method"] = "standard"
    results["attacks"][0]["correct"], results["attacks"][2]["correct"] = 950, 3
    results["attacks"][2]["parameters"]["bound"] = 0.5
    (other / "results.json").write_text(json.dumps(results))
    for suffix in (".md", ".tex", ".csv", ".txt"):
        assert command.main([str(workdir), str(other), "--output", str(tmp_path / f"table{suffix}")]) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["Method"], row["Clean"], row["l2"], row["StAdv"]) for row in rows] == [
        ("lagrangian", "80.30", "51.20", "41.60"), ("standard", "95.00", "0.30", "")]  # fmt: skip
    assert rows[1]["Run"] == "other/run"
    markdown = (tmp_path / "table.md").read_text()
    assert "**51.20**" in markdown
    assert "**95.00**" in markdown
    assert "Column l2 holds different attacks" in markdown
    assert "Column linf" not in markdown
    assert "45.30" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([str(workdir), "--output", "table.docx"])


def test_compare_says_nothing_of_what_it_does_not_know(workdir, tmp_path):
    imported, python = fake(tmp_path / "imported", ["none"], epochs=1), fake(tmp_path / "python", ["none"], epochs=1)
    (imported / "metrics.jsonl").unlink()
    for folder, changed in ((imported, {"training": None}), (python, {"data": {"examples": 1000}})):
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps(results | changed))
    table = report.compare([workdir, imported, python])
    # config.json names a method that is the configuration's, not that of the weights
    assert [row[table.header.index("Method")] for row in table.rows] == ["lagrangian", "–", "lagrangian"]
    assert "The runs are on different data: cifar10 test; without a name." in table.notes


@pytest.mark.parametrize(("size", "expected"), [(8 / 255, 10), (0.5, 1), (0.9, 1), (0.001, 500), (0.0, 1), (0.25, 2)])
def test_magnification(size, expected):
    perturbation = np.full((2, 3, 3, 3), size, np.float32) * np.array([1, -1])[:, None, None, None]
    factor = figures.magnification(perturbation)
    assert factor == pytest.approx(expected)
    shown = figures.around_grey(perturbation, factor)
    np.testing.assert_allclose(shown[0] + shown[1], 1, atol=1e-6)
    np.testing.assert_allclose(figures.around_grey(0 * perturbation, factor), 0.5)


def _linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _contrast(one, other):
    high, low = sorted((float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(np.clip(xyz / [0.9505, 1.0, 1.089], 1e-9, None))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Full protanopia, deuteranopia and tritanopia on linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK], ids=["light", "dark"])
def test_palette(theme):
    """Lines stand out from the page (3 to 1), text is readable (4.5 to 1), hues stay apart for the colour-blind."""
    for colour in theme.colours.values():
        assert _contrast(colour, theme.background) >= 3, colour
    for colour in (theme.ink, theme.muted):
        assert _contrast(colour, theme.background) >= 4.5, colour
    for kind, matrix in BLINDNESS.items():
        seen = [_lab(np.clip(np.array(matrix) @ _linear(colour), 0, 1)) for colour in theme.colours.values()]
        apart = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(range(6), 2)}
        assert min(apart.values()) >= 10, (kind, min(apart, key=apart.get), min(apart.values()))
        assert min(value for (a, b), value in apart.items() if b < 4) >= 18, kind
