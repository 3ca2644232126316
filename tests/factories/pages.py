"""The pages of the repository: their fenced blocks, running text and command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factories.paths import ROOT

PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("benchmarks/README.md", "tests/README.md")),
    )
    if path.is_file()
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<text>.*?)^ *```[^\S\n]*$", re.M | re.S)
SHELL = ("", "sh", "bash", "shell", "console")
"""Languages of blocks whose lines may be commands; a block without a language shows a session or a command."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    """Line of the page at which the fence opens, from 1."""


def page_name(page: Path) -> str:
    """Path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """Fenced blocks in one of these languages, in order."""
    text = page.read_text(encoding="utf-8")
    matches = [
        Block(language=m["language"], text=_dedent(m["text"], m["indent"]), line=text.count("\n", 0, m.start()) + 1)
        for m in FENCE.finditer(text)
    ]
    return [block for block in matches if block.language in languages]


def _dedent(text: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """What stands in single backquotes."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def shell_lines(block: Block) -> list[str]:
    """Lines of a block without the prompt; continuation lines are joined."""
    return [line.removeprefix("$ ") for line in re.sub(r"\\\n\s*", " ", block.text).splitlines()]


def command_lines(block: Block) -> Iterator[list[str]]:
    """Arguments after `tmi` of each command line in a block; variables before it and comments are left out."""
    for line in shell_lines(block):
        bare = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
        if not bare.startswith("tmi ") or bare.removeprefix("tmi ").startswith("COMMAND"):
            continue
        for part in re.split(r"\s(?:\||&&|;|>|2>)\s?", bare):
            if part.startswith("tmi "):
                yield shlex.split(part, comments=True)[1:]
