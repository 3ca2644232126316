"""Text that is safe to print."""

from __future__ import annotations

import json

import pytest

from tmi.toolkit.storage.terminal_text import printable, printable_json

HOSTILE = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b[2J": r"\x1b[2J",
    "a\nerror: forged": r"a\nerror: forged",
    "a\r\x08b": r"a\r\x08b",
    "\x9b31m\x7f": r"\x9b31m\x7f",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2066x\u2069\u200f\u061c": r"\u2066x\u2069\u200f\u061c",
    "zero\u200bwidth\ufeff": r"zero\u200bwidth\ufeff",
    "line\u2028paragraph\u2029": r"line\u2028paragraph\u2029",
    "half \udcff pair": r"half \udcff pair",
    "tag \U000e0041 private \ue000": r"tag \U000e0041 private \ue000",
}


@pytest.mark.parametrize(("text", "expected"), HOSTILE.items())
def test_unprintable_characters_are_escaped(text, expected):
    """Controls, direction and format characters, surrogates and private characters become Python escapes."""
    assert printable(text) == expected
    assert printable(expected) == expected


def test_letters_and_spaces_of_every_script_stay():
    """Printable text stays as it is, no-break spaces and combining letters included."""
    text = "Müller, 10\u00a0µmol/L, 肝, נשים, e\u0301, 🫀"
    assert printable(text) == printable_json(text) == text


def test_line_feeds_and_tabs_stay_where_lines_are_printed():
    """With `lines` a text keeps its line feeds and tabs, and nothing else."""
    assert printable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


def test_json_parses_to_the_same_value():
    """A JSON text holds no unprintable character and parses to the same value, without ASCII escapes too."""
    value = {text: list(HOSTILE) for text in HOSTILE}
    for ascii_only in (True, False):
        text = printable_json(json.dumps(value, indent=1, ensure_ascii=ascii_only))
        assert json.loads(text) == value
        assert all(line.isprintable() for line in text.split("\n"))
