import os
import sys
import termios

from lagrangian_jax import progress


def test_a_log_gets_a_line_now_and_then(capsys):
    with progress.progress_bar(500, "image", "linf") as bar:
        for _ in range(500):
            bar.update()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("linf: 0% 0/500 [")
    assert last.startswith("linf: 100% 500/500 [")
    assert "image/s" in last


def test_a_line_in_a_log_ends(capsys, monkeypatch):
    """What collects logs shows a line when it ends; carriage returns would be one line for the whole training."""
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with progress.progress_bar(4560, "step", initial=3771) as bar:
        capsys.readouterr()
        bar.set_postfix({"loss": "1.783"}, refresh=False)
        bar.update(10)
        told = capsys.readouterr().err
        assert told.startswith("83% 3781/4560 [")
        assert told.endswith("loss=1.783]\n")
        bar.write("a checkpoint", file=sys.stderr)
        assert capsys.readouterr().err == "a checkpoint\n"


def test_a_terminal_gets_one_bar(monkeypatch):
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress.progress_bar(4, "step") as bar:
            bar.update(4)
        monkeypatch.undo()
    told = ""
    while not told.endswith("\n"):
        told += os.read(screen, 10_000).decode()
    os.close(screen)
    first, *more = told.strip().split("\r")
    assert first.startswith("0%|")
    assert more[-1].startswith("100%|")
