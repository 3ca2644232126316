"""Base of the manifest's dataclasses: their values cannot be changed after construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class FrozenValues:
    """A dataclass whose mappings are read-only views of private copies, and whose lists are tuples."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, frozen(getattr(self, field.name)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A view cannot be pickled or copied; the values are sent to worker processes as dictionaries and frozen there.
        return _rebuild, (type(self), {field.name: _thawed(getattr(self, field.name)) for field in fields(self)})


def _rebuild(cls: type[FrozenValues], values: dict[str, Any]) -> FrozenValues:
    return cls(**values)


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(entry) for key, entry in value.items()}
    return tuple(map(_thawed, value)) if isinstance(value, tuple) else value


def frozen(value: Any) -> Any:
    """A value whose mappings and lists, at any depth, cannot be changed."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(entry) for key, entry in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value
