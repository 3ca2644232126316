"""Completion of the values of an option, for the shells that `tmi --install-completion` serves.

The words are the keys of a registry, which is imported when a shell asks for them: a command that runs needs none of
it. Paths are completed by the shell itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable


def completes(*words: str, of: str = "") -> Callable[[str], list[str]]:
    """Return the function that a typer option takes as `autocompletion`.

    Args:
        words: words that are offered first.
        of: `module:name` of a mapping or sequence whose words follow, or of a function that returns one.

    Returns:
        Function from the beginning of a word to the words that begin so.
    """

    def values(incomplete: str) -> list[str]:
        module, _, name = of.partition(":")
        registry = getattr(importlib.import_module(module), name) if of else ()
        known = [*words, *(registry() if callable(registry) else registry)]
        return [str(word) for word in dict.fromkeys(known) if str(word).startswith(incomplete)]

    return values
