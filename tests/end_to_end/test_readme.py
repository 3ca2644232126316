"""README checks: the files of its tree, its pages, make targets and extras exist. `test_docs.py` checks the rest."""

from __future__ import annotations

import re

from factories.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## The tree\n")[1].split("```")[1]


def test_files_of_the_tree_exist():
    """Every file and folder that the tree names exists; `*` is a placeholder."""
    named = re.findall(r"[\w*./-]*\w[\w*-]*(?:\.py\b|/(?=\s))", TREE)
    folders = [p for p in ROOT.glob("*/tmi/*") if p.is_dir()] + [ROOT, ROOT / "tests"]
    missing = [n for n in named if not any(list(f.glob(n.rstrip("/"))) for f in folders)]
    assert named
    assert missing == []


def test_readme_links_every_documentation_page():
    """Each page directly in `docs/` is linked."""
    links = set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")} <= links


def test_make_targets_exist():
    """Every `make` target of the README is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_table_lists_all_extras():
    """The table of extras has those of the distribution, and no other."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = README.split("| extra | brings")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert named == set(extras)


def test_predict_page_lists_all_engines():
    """The table of docs/predict.md has every engine with its package and its error bound, in the registry's order."""
    from tmi.runtime.engines.registry import ENGINES

    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    table = page.split("## Engines")[1].split("## ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .* \| ([\w`\[\]. -]+) \| ([^|]+) \|$", table, re.M)
    assert [name for name, _, _ in rows] == list(ENGINES)
    for name, package, bound in rows:
        spec = ENGINES[name]
        assert package == (f"`tmi-clnet[{spec.extra}]`" if spec.extra else "base install")
        assert bound == "it is the reference" if spec.max_abs_err == 0 else float(bound) == spec.max_abs_err
