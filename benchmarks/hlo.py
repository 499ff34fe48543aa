"""Counts bytes in the text of a compiled program (HLO)."""

import math
import re


def accessed(program: str) -> float:
    """Bytes that the instructions of a program's entry computation read and write; loops are not followed.

    >>> accessed("ENTRY %main (a: f32[4]) -> f32[4] {\\n  %a = f32[4]{0} parameter(0)\\n"
    ...          "  %b = bf16[4]{0} fusion(%a), calls=%f\\n  ROOT %c = f32[4]{0} fusion(%b, %a), calls=%g\\n}")
    64.0
    """
    sizes: dict[str, int] = {}
    total = 0
    for line in program[program.index("ENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$", line)
        if found is None:
            continue
        name, kind, operation, rest = found.groups()
        sizes[name] = size_of(kind)
        if operation not in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant"):
            read = sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", rest.split(")")[0]))
            total += read + sizes[name] - size_of(" ".join(re.findall(r"u8\[\d*\]", kind)))  # without work space
    return float(total)


def size_of(shapes: str) -> int:
    """Bytes of all arrays in an HLO type, ``(bf16[2,3]{1,0}, f32[])``."""
    total = 0
    for kind, bits, dims in re.findall(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]", shapes):
        total += math.prod(int(size) for size in dims.split(",") if size) * (1 if kind == "pred" else int(bits) // 8)
    return total
