"""The benchmarks of attacks: a tiny run, and the page that is made from committed results."""

import json

import pytest

attack_parity = pytest.importorskip("benchmarks.attack_parity")
attack_suite = pytest.importorskip("benchmarks.attack_suite")


def test_the_parity_page_says_what_the_results_say():
    assert attack_parity.main(["--check"]) == 0


def test_the_parity_tables_know_every_recorded_attack(golden):
    recorded = {line.split(",")[1] for line in (golden / "results.csv").read_text().splitlines()[1:]}
    assert recorded == set(attack_parity.ATTACKS)
    for row in set(attack_parity.ATTACKS):
        assert attack_parity.create(row, golden).name == attack_parity.ATTACKS[row][0]


@pytest.mark.slow
def test_the_suite_measures_a_small_attack(tmp_path, capsys):
    file = tmp_path / "suite.json"
    arguments = ["--attacks=pgd_linf", "--images=4", "--size=16", "--width=4", "--most=2", "--suite=none"]
    assert attack_suite.main([*arguments, f"--output={file}"]) == 0
    (row,) = json.loads(file.read_text())["attacks"]
    assert row["gradient_evaluations"] == 2
    assert row["forward_passes"] == 3
    assert row["images_per_second"] > 0
    assert row["compile_seconds"] > 0
    assert row["peak_bytes"] >= 0
    assert "pgd_linf" in capsys.readouterr().out


def test_counts_are_capped():
    assert attack_suite.capped("pgd_l0", 3) == {"steps": 3, "max_pixels": 3, "restarts": 3}
    assert attack_suite.capped("lpa", 7)["steps"] == 7
    assert attack_suite.capped("square", None) == {}
