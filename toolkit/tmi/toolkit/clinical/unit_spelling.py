"""Spellings of units: `g/dl` is `g/dL`, `µmol/L` is `umol/L` with either micro sign, `x10⁹/l` is `10^9/L`.

So are superscripts, `g·L⁻¹`, words for powers of ten (`Tsd/µl`, `Mrd/l`), and units in Cyrillic letters.

Only the spelling is compared, and only with the units of one field; a unit is never guessed from a value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SLASHES = str.maketrans("⁄∕", "//")
CYRILLIC = (
    ("мкл", "ul"), ("мкг", "ug"), ("мк", "u"), ("ммоль", "mmol"), ("моль", "mol"), ("тыс", "tsd"),
    ("млн", "mio"), ("млрд", "mrd"), ("ме/", "iu/"), ("ед/", "u/"), ("дл", "dl"), ("мл", "ml"), ("мг", "mg"),
    ("нг", "ng"), ("мм", "mm"), ("см", "cm"), ("кг", "kg"), ("г", "g"), ("л", "l"), ("м", "m"), ("х", "x"),
)  # fmt: skip
"""Cyrillic letters of a unit -> Latin ones, in this order."""
ALIASES = (
    (r"[.·⋅∙•]?(l|dl|ml|ul|nl|mm3)[-−]1$", r"/\1"),  # g·L⁻¹
    (r"(\D|^)(?:mc|mk|micro)(?=g|l|mol)", r"\1u"),  # mcg, mcmol, micromol
    (r"g[mr](?=/|%|$)", "g"),
    (r"mm3\b|cmm\b", "ul"),
    (r"^[x*.·]?(?:10[*^e]|1?e)\+?\(?(\d+)\)?", r"10\1"),  # x10^9, 10*9 (UCUM), 10e9, 1e9, E9, 10^(9)
    (r"^x10(?=\d)", "10"),
    (r"(?:cells?|zellen|counts?|partikel)(?=/)|^[n#](?=/)", ""),
    (r"^(?:k|tsd\.?|thou(?:sand)?|1000)/ul$", "103/ul"),
    (r"^mrd\.?/l$|^1?/nl$", "109/l"),
    (r"^(?:m|mio\.?|mill(?:ion)?)/ul$", "106/ul"),
    (r"^(?:gpt|giga|g)/l$", "109/l"),
    (r"^(?:tpt|tera|t)/l$", "1012/l"),
    (r"^1?/ul$", "/ul"),
    (r"^1?/pl$", "1012/l"),
    (r"^(k?)units?/", r"\1u/"),
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
    for letters, latin in CYRILLIC:
        text = text.replace(letters, latin)
    for pattern, spelling in ALIASES:
        text = re.sub(pattern, spelling, text)
    return text.replace("^", "").replace("*", "")
