"""A table of text cells and its formats: plain text, Markdown, LaTeX and CSV."""

import csv
import dataclasses
import html
import io
import re
from collections.abc import Sequence

ABSENT = "–"  # the cell of a missing number


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text, ready for any format.

    Attributes:
      header: headings.
      rows: cells, each row as long as the header.
      left: how many columns hold text and are aligned left; the others hold numbers.
      best: (row, column) of cells to emphasise.
      notes: remarks that belong below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    best: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Aligned columns for a terminal.

        >>> print(Table(["Attack", "Accuracy"], [["PGD l2", "33.33"], ["none", "9.00"]]).text())
        Attack  Accuracy
        ------  --------
        PGD l2     33.33
        none        9.00
        """
        cells = [[_printable(cell).replace(ABSENT, "-") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        lines = [
            "  ".join(
                cell.ljust(width) if column < self.left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, *(["", *map(_printable, self.notes)] if self.notes else [])])

    def markdown(self) -> str:
        """A pipe table with the best cells in bold and the notes below."""
        rule = [":--" if column < self.left else "--:" for column in range(len(self.header))]
        rows = [
            [f"**{markdown(cell)}**" if (r, c) in self.best else markdown(cell) for c, cell in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]
        lines = ["| " + " | ".join(row) + " |" for row in (list(map(markdown, self.header)), rule, *rows)]
        return "\n".join([*lines, *(line for note in self.notes for line in ("", markdown(note)))]) + "\n"

    def latex(self) -> str:
        r"""A ``tabular`` with the rules of ``booktabs`` and the best cells in bold.

        >>> print(Table(["Run", "linf"], [["a_b", "33.33"]]).latex())
        \begin{tabular}{lr}
        \toprule
        Run & $\ell_\infty$ \\
        \midrule
        a\_b & 33.33 \\
        \bottomrule
        \end{tabular}
        <BLANKLINE>
        """
        rows = [
            [rf"\textbf{{{latex(cell)}}}" if (r, c) in self.best else latex(cell) for c, cell in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]
        columns = "l" * self.left + "r" * (len(self.header) - self.left)
        lines = [" & ".join(row) + r" \\" for row in (list(map(latex, self.header)), *rows)]
        lines = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        notes = [f"% {_printable(note)}" for note in self.notes]
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *lines, r"\end{tabular}", *notes]) + "\n"

    def csv(self) -> str:
        """Comma-separated values; absent ones are empty, and the notes are left out."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for row in (self.header, *self.rows):
            writer.writerow(["" if cell == ABSENT else _printable(cell) for cell in row])
        return buffer.getvalue()


def markdown(cell: str) -> str:
    """Escapes text, so that Markdown shows it as it is."""
    cell = re.sub(r"([\\`*_|\[\]])", r"\\\1", _printable(cell))
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def picture(path: str, text: str) -> str:
    """A figure for Markdown, from ``path.svg`` on light pages and ``path-dark.svg`` on dark ones.

    >>> picture("figure2", "Norm & confidence").partition("<img ")[2]
    'src="figure2.svg" alt="Norm &amp; confidence"></picture>'
    """
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{path}-dark.svg">'
    return f'<picture>{dark}<img src="{path}.svg" alt="{html.escape(text)}"></picture>'


def latex(cell: str) -> str:
    """Escapes text, so that LaTeX typesets it as it is; names of norms become mathematics."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", ABSENT: "--"}
    special |= {character: "\\" + character for character in "&%$#_{}"}
    cell = "".join(special.get(character, character) for character in _printable(cell))
    cell = re.sub(r"\blinf\b", lambda _: r"$\ell_\infty$", cell)
    return re.sub(r"\bl([012])\b", r"$\\ell_\1$", cell)


def _printable(cell: str) -> str:
    return "".join(character if character.isprintable() else " " for character in cell)
