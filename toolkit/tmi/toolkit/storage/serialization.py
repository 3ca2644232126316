"""Conversion between JSON values and frozen dataclasses, with strict validation of keys and types."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tmi.toolkit.errors import UsageError

T = TypeVar("T")
MAX_SHOWN = 100
"""Largest number of characters of a value in an error message."""


def to_json(config: object) -> dict[str, Any]:
    """Convert a dataclass to plain JSON values; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def from_json(cls: type[T], data: Mapping[str, Any], *, where: str = "config") -> T:
    """Build a dataclass from JSON values and check every key and type.

    Args:
        cls: dataclass; its type hints define the keys and types.
        data: JSON object.
        where: path of the object, for error messages.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise UsageError(
            f"{where}: {_shown(data)} is not an object", fix=f"give an object with the keys of {cls.__name__}"
        )
    hints = type_hints(cls)  # type: ignore[arg-type]  # a class is hashable
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise UsageError(f"{where}: unknown key {_shown(unknown[0])}", fix=f"known keys: {', '.join(hints)}")
    absent = (f for f in fields(cls) if f.init and f.name not in data)  # type: ignore[arg-type]
    missing = [f.name for f in absent if f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise UsageError(f"{where}: missing key {missing[0]!r}", fix="give every key that has no default")
    values = {name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:  # of a class that checks its values itself
        raise UsageError(f"{where}: {error}", fix=f"compare its values with those of {cls.__name__}") from error


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """Field -> its type, of a dataclass; resolved once."""
    return get_type_hints(cls)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Convert a value to the type of a hint, or raise UsageError. A float hint accepts int; no number accepts bool."""
    origin = get_origin(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return from_json(hint, value, where=where)
    elif origin is Literal:
        if value in get_args(hint):
            return value
    elif origin in (Union, types.UnionType):
        sections = [o for o in get_args(hint) if is_dataclass(o) or get_origin(o) is Mapping]
        if isinstance(value, Mapping) and len(sections) == 1:
            return _typed(sections[0], value, where)  # an optional section: its own error is more specific
        for option in get_args(hint):
            try:
                return _typed(option, value, where)
            except UsageError:
                continue
    elif origin is tuple:
        items = get_args(hint)
        if isinstance(value, (list, tuple)):
            if len(items) == 2 and items[1] is Ellipsis:
                return tuple(_typed(items[0], v, where) for v in value)
            if len(items) == len(value):
                return tuple(_typed(i, v, where) for i, v in zip(items, value, strict=True))
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {str(k): _typed(get_args(hint)[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is Any:
        return value
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = " or ".join(map(repr, get_args(hint))) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where}: {_shown(value)} is not {expected}", fix=_fix(hint, value, expected))


def _fix(hint: Any, value: Any, expected: str) -> str:
    """Return what to write instead of a value: YAML has numbers, truth values and null where a text is meant."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    section = next((o for o in options if is_dataclass(o)), None)
    if section is not None:
        return f"give an object with the keys {', '.join(f.name for f in fields(section))}, or omit the key"
    if str in options and value is not None and not isinstance(value, (str, list, Mapping)):
        return f'put it into quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    return f"give {expected}"


def _shown(value: Any) -> str:
    """Value in an error message, of at most `MAX_SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False
