"""Configuration of a model of Triton (`config.pbtxt`) as the text format of protocol buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIG_FILE = "config.pbtxt"
DATA_TYPES = {"BYTES": "TYPE_STRING", "FP64": "TYPE_FP64", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}
"""Datatype of the Open Inference Protocol or of a graph -> that of Triton."""


@dataclass(frozen=True)
class Word:
    """Value of an enumeration, written without quotes."""

    name: str


def tensor_entry(name: str, datatype: str, dims: Sequence[int | str], *, is_optional: bool = False) -> dict[str, Any]:
    """Return an input or output.

    Args:
        name: its name.
        datatype: key of `DATA_TYPES`.
        dims: its sizes without the axis of the batch; a dynamic axis by name.
        is_optional: whether a request may leave it out.
    """
    sizes = [size if isinstance(size, int) else -1 for size in dims]
    return {"name": name, "data_type": Word(DATA_TYPES[datatype]), "dims": sizes} | (
        {"optional": True} if is_optional else {}
    )


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration as text: objects in braces, one line for each value."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(fields: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in fields.items():
        for item in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(item, Mapping):
                lines += [f"{indent}{name} {{", *_lines(item, indent + "  "), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, int):
        return str(value)
    # C escapes of the text format: every byte that is not a plain character as octal digits.
    plain = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in str(value).encode())
    return f'"{plain}"'
