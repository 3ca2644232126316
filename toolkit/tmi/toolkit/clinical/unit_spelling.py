"""Spellings of units: `g/dl` is `g/dL`, `µmol/L` is `umol/L` with either micro sign, `x10⁹/l` is `10^9/L`.

Only the spelling is compared, and only with the units of one field; a unit is never guessed from a value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
SLASHES = str.maketrans("⁄∕", "//")
ALIASES = (
    (r"(\D|^)mc(?=g|l|mol)", r"\1u"),  # mcg, mcmol
    (r"mm3\b|cmm\b", "ul"),
    (r"^[x*.·]?(?:10[*^e]|1e)\+?(\d+)", r"10\1"),  # x10^9, 10*9 (UCUM), 10e9, 1e9
    (r"^x10(?=\d)", "10"),
    (r"^(?:k|tsd\.?|thou(?:sand)?)/ul$", "103/ul"),
    (r"^(?:m|mio\.?|mill(?:ion)?)/ul$", "106/ul"),
    (r"^(?:gpt|giga|g)/l$", "109/l"),
    (r"^(?:tpt|tera|t)/l$", "1012/l"),
    (r"^(?:1|cells?|zellen)?/ul$", "/ul"),
    (r"^(k?)(?:iu|ie|ui)/", r"\1u/"),
    (r"(?:/100ml|%)$", "/dl"),  # mg/100 ml, mg%
    (r"^/dl$", "%"),
    (r"^(?:percent|pct)$", "%"),
    (r"^(?:years?|yrs?|y)$", "years"),
    (r"/m(?:\^|\*\*)?2$", "/m2"),
)
"""Pattern -> spelling, in this order, on a text in lower case without spaces."""


def spelled_units(text: str, known: Iterable[str]) -> list[str]:
    """Return the units of `known` that a text is a spelling of: only itself if it is one of them."""
    units = list(known)
    if text in units:
        return [text]
    key = _spelling(text)
    return [unit for unit in units if unit and _spelling(unit) == key]


def _spelling(unit: str) -> str:
    """Return a unit in one spelling for all: no case, spaces, superscripts or micro signs."""
    text = re.sub(r"(?<=10)(?=[⁰¹²³⁴⁵⁶⁷⁸⁹])", "^", unit).translate(SUPERSCRIPTS).translate(SLASHES)
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u03bc", "u").replace("\u00d7", "x")
    text = re.sub(r"\s+", "", text)
    for pattern, spelling in ALIASES:
        text = re.sub(pattern, spelling, text)
    return text.replace("^", "").replace("*", "")
