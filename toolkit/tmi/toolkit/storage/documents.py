"""The only parser of JSON, TOML and YAML documents from outside: a run, a record, a manifest, settings, a journal.

Some documents are valid, and break the program that uses them: nesting that exhausts the stack, integers of thousands
of digits, `1e400` and `NaN`, halves of surrogate pairs, a key that occurs twice. They are rejected here, so that a
document holds only finite numbers, texts that can be written, and few levels. Reasons do not quote the document, which
may hold patient data.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.storage.bounded_files import read_bytes

MAX_DEPTH = 64
"""Levels of nesting; documents of this package have at most ten."""
MAX_DIGITS = 40
"""Digits of an integer; the largest one of 64 bits has 20."""
MAX_YAML_NODES = 20_000
"""Keys and values of a YAML document, which take 0.1 ms each; a mapping of 1,781 features has 3,600."""

YAML_SCALARS = {
    "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"([-+]?[0-9]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    "float": (
        re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
        "-+.0123456789",
    ),
}
"""Kind of a YAML scalar -> its whole text and its first characters, in the core schema of YAML 1.2 (section 10.3)."""
YAML_DROPPED = frozenset({*YAML_SCALARS, "value"})
"""Kinds of YAML 1.1 whose texts differ from YAML 1.2."""


class DocumentError(ValueError):
    """A document that is not read.

    Args:
        reason: predicate of a sentence about the document, without its content: `is not JSON`.
        detail: the same as a sentence that may quote a key; None: `it` and the reason.
    """

    def __init__(self, reason: str, *, detail: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or f"it {reason}"


class NotFiniteError(DocumentError):
    """A document contains NaN, infinity, or a number beyond the range of float64."""

    def __init__(self) -> None:
        super().__init__("contains a number that is not finite")


def read_document(path: Path, *, max_bytes: int) -> Any:
    """Return the value of a JSON file.

    Raises:
        DocumentError: it is not JSON, or breaks a limit.
        OSError: it is missing, cannot be read, is no regular file, or is larger than `max_bytes`.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes))


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON document in UTF-8, UTF-16 or UTF-32.

    Raises:
        DocumentError: it is not JSON, or breaks a limit.
    """
    return _parse(data, "JSON", _load_json)


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """Return the value of a TOML document.

    Raises:
        DocumentError: it is not TOML, or breaks a limit.
    """
    document: dict[str, Any] = _parse(data, "TOML", tomllib.loads)
    return document


def parse_yaml(data: bytes | str) -> Any:
    """Return the value of a YAML document of plain values; tags and aliases are rejected, keys become text.

    Scalars are those of YAML 1.2, and dates: only `true` and `false` are truth values; `no`, `off` and `12:30` are
    texts, where YAML 1.1 has false and 750; `010` is ten, not eight.

    Raises:
        DocumentError: it is not YAML, or breaks a limit.
        UnavailableError: PyYAML is not installed.
    """
    return _parse(data, "YAML", _load_yaml)


def _parse(data: bytes | str, kind: str, load: Callable[[str], Any]) -> Any:
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        value = load(text)
    except DocumentError:
        raise
    except UnicodeDecodeError as error:
        raise DocumentError("is not text in UTF-8") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        detail = str(error) if isinstance(error, tomllib.TOMLDecodeError) else None
        raise DocumentError(f"is not {kind}{_position(error)}", detail=detail) from error
    require_plain(value)
    return value


def _position(error: ValueError) -> str:
    """Where a text is malformed, if the parser's error has the place."""
    return f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""


def require_plain(value: Any) -> None:
    """Raise if a parsed value is nested too deeply, or holds a number or text that a document cannot hold.

    Raises:
        DocumentError: it does.
    """
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            _require_characters(item)
        elif isinstance(item, (dict, list)):
            if depth >= MAX_DEPTH:
                raise _too_deep()
            if isinstance(item, dict):
                _require_characters("".join(item))
            waiting.extend((entry, depth + 1) for entry in (item.values() if isinstance(item, dict) else item))
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise NotFiniteError
        elif isinstance(item, int):
            if not -(10**MAX_DIGITS) < item < 10**MAX_DIGITS:
                raise _too_long()
        elif item is not None and not isinstance(item, (datetime.date, datetime.time)):  # a set or bytes of YAML
            raise DocumentError("contains a value that is no text, number, date, list or object")


def _require_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError("contains half of a surrogate pair (\\ud800 to \\udfff), which is no character") from error


def _too_deep() -> DocumentError:
    return DocumentError(f"is nested deeper than {MAX_DEPTH} levels")


def _too_long() -> DocumentError:
    return DocumentError(f"contains an integer of more than {MAX_DIGITS} digits")


def _load_json(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=_unique_keys,
        parse_int=_integer,
        parse_float=_finite,
        parse_constant=_finite,
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        key = next(k for k, count in Counter(k for k, _ in pairs).items() if count > 1)
        raise DocumentError("contains a key twice", detail=f"the key {key[:40]!r} is duplicated")
    return data


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS + 1:
        raise _too_long()
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotFiniteError
    return value


def _load_yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "a document in YAML needs PyYAML, which is not installed", fix="pip install 'tmi-clnet[dicom]'"
        ) from error

    class Loader(yaml.SafeLoader):
        """Safe loader of plain values, without aliases."""

        nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise DocumentError("uses an alias (*)")
            self.nodes += 1
            if self.nodes > MAX_YAML_NODES:
                raise DocumentError(f"has more than {MAX_YAML_NODES:,} keys and values")
            return super().compose_node(parent, index)

    def mapping(loader: Loader, node: Any) -> dict[str, Any]:
        pairs = loader.construct_pairs(node, deep=True)
        texts = []
        for (key, _), (key_node, _) in zip(pairs, node.value, strict=True):
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                raise DocumentError(
                    "has a key that is not text", detail=f"the key {str(key)[:40]!r} is not text; put it into quotes"
                )
            require_plain(key)
            is_number = isinstance(key, (int, float)) and not isinstance(key, bool)
            texts.append(str(key) if is_number else key_node.value)  # `true`, `null` and dates as they are written
        return _unique_keys([(text, value) for text, (_, value) in zip(texts, pairs, strict=True)])

    def yaml_integer(loader: Loader, node: Any) -> int:
        text = loader.construct_scalar(node)
        return int(text, 16 if "x" in text else 10)  # YAML 1.1 reads 010 as eight

    Loader.yaml_implicit_resolvers = {  # those of YAML 1.1, without the kinds that are defined below
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in YAML_DROPPED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for kind, (pattern, first) in YAML_SCALARS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", pattern, list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", yaml_integer)
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DocumentError("is not YAML" + ("" if mark is None else f" (line {mark.line + 1})")) from error
