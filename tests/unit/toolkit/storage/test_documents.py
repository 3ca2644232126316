"""Documents that break a limit raise one error, whatever their format; valid ones keep their value."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.run_folder import FoldSplit
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.documents import (
    MAX_DEPTH,
    MAX_DIGITS,
    DocumentError,
    parse_json,
    parse_toml,
    parse_yaml,
    read_document,
)
from tmi.toolkit.storage.serialization import from_json

DEEP = "is nested deeper than 64 levels"
FINITE = "is not finite"
DIGITS = "an integer of more than 40 digits"
TWICE = "contains a key twice"
CHARACTER = "half of a surrogate pair"
JSON = {
    "500 brackets": ("[" * 500 + "]" * 500, DEEP),
    "500 objects": ('{"a":' * 500 + "1" + "}" * 500, DEEP),
    "65 levels": ("[" * 65 + "]" * 65, DEEP),
    "open brackets": ("[" * 200_000, DEEP),
    "5,000 digits": ("9" * 5000, DIGITS),
    "4,000 digits": ('{"a": -' + "9" * 4000 + "}", DIGITS),
    "41 digits": ("9" * 41, DIGITS),
    "1e400": ('{"a": [1, 1e400]}', FINITE),
    "-1e400": ("-1e400", FINITE),
    "NaN": ("[NaN]", FINITE),
    "Infinity": ("-Infinity", FINITE),
    "half a pair": (r'["\ud800"]', CHARACTER),
    "half a pair in a key": (r'{"a": {"\udc00x": 1}}', CHARACTER),
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 1}}', TWICE),
    "no JSON": ('{"a": 1,\n]', r"is not JSON \(line 2, column 1\)"),
    "empty": ("", "is not JSON"),
    "zeros": ("\0" * 64, "is not"),
}
TOML = {
    "500 brackets": ("a = " + "[" * 500 + "]" * 500, DEEP),
    "5,000 brackets": ("a = " + "[" * 5000, DEEP),
    "a dotted key": ("a" + ".a" * 3000 + " = 1", DEEP),
    "5,000 digits": ("a = " + "9" * 5000, "is not TOML|" + DIGITS),
    "hexadecimal": ("a = 0x" + "f" * 5000, DIGITS),
    "1e400": ("a = 1e400", FINITE),
    "nan": ("a = [nan]", FINITE),
    "inf": ("a.b = -inf", FINITE),
    "half a pair": (r'a = "\ud800"', "is not TOML"),
    "a key twice": ("a = 1\na = 2", "is not TOML"),
}
YAML = {
    "500 brackets": ("a: " + "[" * 500 + "]" * 500, DEEP),
    "20,000 brackets": ("[" * 20_000, DEEP),
    "65 levels": ("[" * 65 + "]" * 65, DEEP),
    "5,000 digits": ("a: " + "9" * 5000, "is not YAML"),
    "4,000 digits": ("a: " + "9" * 4000, DIGITS),
    "hexadecimal": ("a: 0x" + "f" * 5000, DIGITS),
    "nan": ("a: .nan", FINITE),
    "inf": ("a: {b: [-.inf]}", FINITE),
    "infinite key": (".inf: 1", FINITE),
    "half a pair": (r'a: "\ud800"', f"{CHARACTER}|is not YAML"),
    "a key twice": ("a: 1\nb: {c: 1, c: 2}", TWICE),
    "a key of a number twice": ("1: 1\n'1': 2", TWICE),
    "a key that is a list": ("? [1, 2]\n: 1", "has a key that is not text"),
    "an empty key": ("? \n: 1", "has a key that is not text"),
    "a truth value as key twice": ("true: 1\n'true': 2", TWICE),
    "an alias": ("a: &x 1\nb: *x", "uses an alias"),
    "laughs": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "uses an alias"),
    "a set": ("a: !!set {b}", "no text, number, date, list or object"),
    "bytes": ("a: !!binary aGk=", "no text, number, date, list or object"),
    "a tag": ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    "an impossible date": ("a: 2024-02-31", "is not YAML"),
    "many values": ("[" + "a," * 30_000 + "]", "has more than 20,000 keys and values"),
    "no YAML": ("a: 1\n]", r"is not YAML \(line 2\)"),
}
CASES = [
    pytest.param(parse, text, reason, id=f"{kind}: {name}")
    for kind, parse, table in (("JSON", parse_json, JSON), ("TOML", parse_toml, TOML), ("YAML", parse_yaml, YAML))
    for name, (text, reason) in table.items()
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("parse", "text", "reason"), CASES)
def test_document_beyond_a_limit_is_rejected(parse, text, reason):
    """Depth, digits, finiteness, characters and unique keys are limits of every format."""
    for data in (text, text.encode()):
        with pytest.raises(DocumentError, match=reason) as caught:
            parse(data)
        assert len(caught.value.reason) < 120


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_document_at_the_limits_is_read(encoding):
    """64 levels, 40 digits and the largest float are accepted, in every encoding of JSON."""
    value: object = [int("9" * MAX_DIGITS), -(2**64), 1.7976931348623157e308, 5e-324, "ä😀\0", None, True, {"": {}}]
    for _ in range(MAX_DEPTH - 3):
        value = [value]
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(encoding)) == value


@pytest.mark.parametrize("data", [b'"\xed\xa0\x80"', b"\xff", b'{"a": "\xe4"}'])
def test_text_that_is_not_utf8_is_rejected(data):
    """Raw halves of surrogate pairs and Latin-1 are no UTF-8."""
    for parse in (parse_json, parse_toml, parse_yaml):
        with pytest.raises(DocumentError, match="is not text in UTF-8"):
            parse(data)


def test_yaml_and_toml_values_are_plain():
    """Both formats give the values of JSON, and dates."""
    assert parse_toml('a = [1, 2.5, "x"]\n[b]\nc = true') == {"a": [1, 2.5, "x"], "b": {"c": True}}
    assert parse_yaml("a: [1, 2.5, x]\nb: {c: true, 1: null}") == {"a": [1, 2.5, "x"], "b": {"c": True, "1": None}}
    keys = parse_yaml("{true: 1, False: 2, null: 3, ~: 4, 2024-02-29: 5, no: 6, 1.0: 7}")
    assert list(keys) == ["true", "False", "null", "~", "2024-02-29", "no", "1.0"]
    assert str(parse_yaml("a: 2024-02-29")["a"]) == "2024-02-29"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("No", "No"), ("YES", "YES"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("true", True), ("False", False), ("010", 10), ("007", 7), ("0o17", "0o17"), ("0x1f", 31), ("12:30", "12:30"),
        ("1:30.5", "1:30.5"), ("1_000", "1_000"), ("=", "="), ("1e5", 1e5), ("-3", -3), ("+4", 4), (".5", 0.5),
        ("1.", 1.0), ("~", None), ("null", None),
    ],
)  # fmt: skip
def test_yaml_scalars_are_those_of_yaml_1_2(text, value):
    """Words and codes are texts unless they are `true`, `false` or a decimal number, as value and as key."""
    got = parse_yaml(f"a: {text}")["a"]
    assert (got, type(got)) == (value, type(value))
    if isinstance(value, str):
        assert parse_yaml(f"{{{text}: 1}}" if ":" not in text else f"'{text}': 1") == {value: 1}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**39), 10**39) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_json_round_trip(value):
    """Every value that a document may hold is read as it was written."""
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_raise_one_error(data):
    """No bytes end in another exception."""
    for parse in (parse_json, parse_toml, parse_yaml):
        with suppress(DocumentError):
            parse(data)


def test_file_of_a_run_names_the_reason(tmp_path):
    """A document of a run that breaks a limit, or is too large, is damaged; the message says why."""
    path = tmp_path / "run.json"
    path.write_text("[" * 500)
    with pytest.raises(DamagedError, match=r"run.json cannot be read as JSON: it is not JSON"):
        read_json(path, kind="run")
    path.write_text("[" * 500 + "]" * 500)
    with pytest.raises(DamagedError, match="it is nested deeper than 64 levels"):
        read_json(path, kind="run")
    with path.open("wb") as stream:
        stream.truncate(6 * 2**30)
    with pytest.raises(DamagedError, match="it is larger than 16 MiB"):
        read_json(path, kind="run")
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_document(path, max_bytes=2**20)


def test_long_value_is_cut_in_messages():
    """A message quotes at most a part of a value, whatever its length."""
    error = DamagedError("x" * 100_000, fix="y" * 100_000)
    assert len(str(error)) == len(error.what) == len(error.fix) == 2000
    with pytest.raises(UsageError) as caught:
        from_json(FoldSplit, {"fold": "z" * 100_000, "train": [], "validation": [], "test": []})
    assert len(str(caught.value)) < 200
