"""``python -m lagrangian_jax.report WORKDIR [WORKDIR ...] [--output FILE]``."""

import argparse
import pathlib
import sys

from lagrangian_jax import config as configuration
from lagrangian_jax import report

FORMATS = {
    ".md": report.Table.markdown,
    ".tex": report.Table.latex,
    ".csv": report.Table.csv,
    ".txt": report.Table.text,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lagrangian_jax.report",
        description="Rewrites the report of a work directory, or compares several in one table.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="one: write its report; several: compare them")
    parser.add_argument("--output", type=pathlib.Path, help=f"file for the comparison: {', '.join(FORMATS)}")
    options = parser.parse_args(arguments)
    if options.output and options.output.suffix not in FORMATS:
        parser.error(f"--output {options.output}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        if len(options.workdirs) == 1 and not options.output:
            print(report.write(options.workdirs[0]))
            print(f"\n{pathlib.Path(options.workdirs[0]) / 'report.html'}")
            return 0
        table = report.compare(options.workdirs)
        if options.output:
            _write(options.output, FORMATS[options.output.suffix](table).rstrip("\n") + "\n")
        print(table.text())
    except (OSError, ValueError) as error:
        return configuration.fail(str(error), code=1)
    return 0


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
