"""Recipes: how a preset's network is trained. `paper` changes nothing; docs/training.md has the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tmi.toolkit.errors import UsageError

RECIPES: Mapping[str, tuple[str, ...]] = MappingProxyType({"paper": (), "strong": ("ct.antialias=true",)})
"""Name -> settings on top of the preset; `--set` takes precedence."""
TEACHES_TEXT = frozenset({"strong"})
"""Recipes whose text encoder is pre-trained on sampled records first, and then frozen."""
DEFAULT_RECIPE = "paper"


def recipe_settings(name: str) -> tuple[str, ...]:
    """Settings of a recipe.

    Raises:
        UsageError: the recipe is unknown; the fix lists the known ones.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", fix=f"choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
