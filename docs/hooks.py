"""What the site's build adds to mkdocs: formulas become MathML, the reStructuredText of docstrings becomes Markdown,
and the figures in ``results/`` become part of the site.

MathML needs no external script or font, so the site works without a network.
"""

import html
import pathlib
import re

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Puts the figures of `results/` where the links that `on_page_markdown` writes point."""
    for figure in RESULTS.glob("*/*.png"):
        target = f"pictures/{figure.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, target, abs_src_path=str(figure)))


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace("](../results/", "](pictures/")


def on_page_content(content: str, **_: object) -> str:
    """Turns formulas, which `pymdownx.arithmatex` marks, into MathML."""

    def mathml(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        formula = convert(html.unescape(match[2]).strip(), display=display)
        return f'<{match[1]} class="formula">{formula}</{match[1]}>'

    return _FORMULA.sub(mathml, content)


def markdown(docstring: str) -> str:
    """Turns the few constructions of reStructuredText that docstrings here use into Markdown.

    >>> print(markdown("With :math:`x` and ``y=1``::"))
    With $x$ and `y=1`:
    """
    lines = iter(docstring.splitlines())
    out: list[str] = []
    block: list[str] | None = None  # the lines of a formula
    table: list[str] | None = None  # the lines of a table between rules of =
    example: list[str] | None = None  # the lines of a doctest
    for line in lines:
        if block is not None:
            if line.strip() and line.startswith("  "):
                block.append(line.strip())
                continue
            if not line.strip() and not any(block):
                continue
            if not line.strip():
                block.append("")
                continue
            out += _formulas(block)
            block = None
        if line.strip().startswith(">>> ") and example is None:
            example = []
        if example is not None:
            if line.strip():
                example.append(line)
                continue
            out += ["```pycon", *example, "```"]
            example = None
        if re.fullmatch(r"=+( +=+)+", line.strip()):
            if table is None:
                table = []
            else:
                out += ["```text", *table, "```"]
                table = None
        elif table is not None:
            table.append(line)
        elif line.strip().startswith(".. math::"):
            block = [line.split(".. math::")[1].strip()]
        else:
            out.append(line)
    if block is not None:
        out += _formulas(block)
    if example is not None:
        out += ["```pycon", *example, "```"]
    text = re.sub(r":math:`([^`]+)`", r"$\1$", "\n".join(out))
    text = re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)
    # One entry for several parameters, "norm, bound: see ...", becomes one for each.
    text = re.sub(r"(?m)^( +)(\w+(?:, \w+)+): (.*)$", _one_each, text)
    return re.sub(r"(?m)::$", ":", text)


def _formulas(lines: list[str]) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return [line for formula in paragraphs for line in ("", "$$", *formula.splitlines(), "$$", "")]


def _one_each(match: re.Match) -> str:
    names = match[2].split(", ")
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in names)


class Docstrings(griffe.Extension):
    """Passes every docstring through `markdown` before mkdocstrings gets it."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
