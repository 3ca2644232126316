"""The first page of the documentation says at its top what the project is, for whom, and the two commands."""

from __future__ import annotations

import re

from factories.paths import ROOT


def test_first_page_answers_three_questions():
    """The first paragraphs state what it is, for whom, and how to start, with two targets of the Makefile."""
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    title, *paragraphs = page.split("\n\n")[:4]
    assert title == "# tmi"
    assert [re.match(r"\*\*([^*]+)\.\*\*", text)[1] for text in paragraphs] == [
        "What it is",
        "For whom",
        "Two commands",
    ]
    assert all(len(text) <= 240 for text in paragraphs)
    targets = re.findall(r"`make ([a-z-]+)`", paragraphs[2])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)
