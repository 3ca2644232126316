"""Overrides of single configuration settings: `--set section.key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import TmiError, UsageError
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.serialization import from_json, to_json

OPEN_SECTION = ["system", "parameters"]
"""Section whose keys depend on the model; the config checks them."""


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Apply `section.key=value` assignments to a config.

    Args:
        config: config to start from; it is not changed.
        assignments: assignments in order; a value is JSON, or else taken as a string.

    Raises:
        UsageError: an unknown key, or a value of the wrong type.
    """
    data = to_json(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r} has no '='", fix="write --set section.key=value")
        *path, last = key.strip().split(".")
        if [*path, last] == ["preset"]:
            raise UsageError("--set preset: the preset is not a setting", fix="select it with --preset")
        node = data
        for step in path:
            child = node.get(step)
            if not isinstance(child, dict):
                raise UsageError(
                    f"--set {key}: unknown section {step!r}",
                    fix=f"known: {', '.join(k for k, v in node.items() if isinstance(v, dict))}",
                )
            node = child
        if (last not in node and path != OPEN_SECTION) or isinstance(node.get(last), dict):
            raise UsageError(f"--set {key}: unknown setting", fix=f"known: {', '.join(node)}")
        try:
            node[last] = parse_json(text)
        except DocumentError:
            node[last] = text
    try:
        return replace(from_json(Config, data), preset=config.preset)
    except TmiError as error:
        raise UsageError(error.what, fix=error.fix) from error
