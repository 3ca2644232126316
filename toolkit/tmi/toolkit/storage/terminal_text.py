"""Text that is safe to print: no escape sequence, no control or direction character reaches a terminal or a page.

Names of folders and files, strings of DICOM files and bundles, and texts of errors come from outside. In a terminal
they could change the title, move the cursor, or show letters in another order than they are stored.
"""

from __future__ import annotations

import unicodedata

SPACES = "Zs"
"""Unicode category of the spaces other than U+0020; `str.isprintable` excludes them, but they are harmless."""


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text with every unprintable character as its Python escape, for example ``\x1b`` or ``\u202e``.

    Unprintable are controls (C0, C1, DEL), format characters (bidirectional overrides, zero-width characters), line
    separators, surrogates, and unassigned or private code points.

    Args:
        text: any text, surrogates of undecodable file names included.
        lines: keep line feeds and tabs; otherwise the result is one line.
    """
    if text.isprintable():
        return text
    return "".join(c if _keep(c) or (lines and c in "\n\t") else _python_escape(c) for c in text)


def printable_json(text: str) -> str:
    r"""Return a JSON text with every unprintable character as ``\uXXXX``; it parses to the same value."""
    if text.isprintable():
        return text
    return "".join(c if _keep(c) or c in "\n\t" else _json_escape(c) for c in text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it holds no half of a surrogate pair.

    Halves come from file names that are not UTF-8 and from JSON escapes such as `\\ud83d`.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _keep(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == SPACES


def _python_escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
