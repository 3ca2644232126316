"""The table of codes: every code in the source of the four packages is a row, and every row is in the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.runtime.service.request_errors import STATUS_OF
from tmi.toolkit.errors import DamagedError, InputRejectedError, TmiError, UnavailableError, UsageError
from tmi.toolkit.issues.codes import CODES, RETIRED_CODES
from tmi.toolkit.issues.issue import Issue

PACKAGES = ("toolkit", "runtime", "training", "export")
KINDS = {"kind": ("ct", "mask"), "use": ("ct", "mask", "radiomics")}
"""Variable in front of a code's last part -> its values."""
OF_ANOTHER_KIND = {"_exit_error", "HeaderError", "set_sform", "set_qform"}
"""Callables whose `code` is that of a process or of an affine, or only the last part of one."""
PARTS = {"affine", "forms", "not-3d", "unreadable"}
"""Last parts of the codes of a file's header, which `f"{kind}-{code}"` completes."""


def sources() -> dict[Path, ast.Module]:
    """Every module of the four packages, but the table itself."""
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    return {f: ast.parse(f.read_text(encoding="utf-8")) for f in files if f.name != "codes.py"}


def code_parameters(trees: dict[Path, ast.Module]) -> dict[str, int]:
    """Name of each function, class or classmethod with a parameter `code` -> its position; -1: by keyword only."""
    found = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = [b.target.id for b in node.body if isinstance(b, ast.AnnAssign) and hasattr(b.target, "id")]
                inits = [b for b in node.body if isinstance(b, ast.FunctionDef) and b.name == "__init__"]
                names = [a.arg for a in inits[0].args.args[1:]] if inits else fields
                if "code" in [*names, *(a.arg for init in inits for a in init.args.kwonlyargs)]:
                    found[node.name] = names.index("code") if "code" in names else -1
            elif isinstance(node, ast.FunctionDef) and node.name != "__init__":
                names = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
                if "code" in [*names, *(a.arg for a in node.args.kwonlyargs)]:
                    found[node.name] = names.index("code") if "code" in names else -1
    return found


def expanded(value: ast.expr) -> Iterator[str]:
    """The codes that an expression can give; none for a variable, whose value was a constant elsewhere."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from (*expanded(value.body), *expanded(value.orelse))
    elif isinstance(value, ast.JoinedStr):
        first, *rest = value.values
        assert isinstance(first, ast.FormattedValue)
        assert isinstance(first.value, ast.Name), ast.unparse(value)
        variable = isinstance(rest[-1], ast.FormattedValue)
        ends = PARTS if variable else {str(ast.literal_eval(rest[-1])).removeprefix("-")}
        yield from (f"{kind}-{end}" for kind in KINDS[first.value.id] for end in ends)
    else:
        assert isinstance(value, (ast.Name, ast.Attribute, ast.Subscript)), (
            f"a code that no test can read: {ast.unparse(value)}"
        )


def given_codes(trees: dict[Path, ast.Module]) -> set[str]:
    """Every code that is passed to a parameter `code`."""
    everywhere, codes = code_parameters(trees), set()
    for file, tree in trees.items():
        parameters = everywhere | code_parameters({file: tree})  # private functions of two modules have one name
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            values = [k.value for k in call.keywords if k.arg == "code"]
            position = parameters.get(name, -1)
            if name == "of" and ast.unparse(call.func) != "Issue.of":
                position = -1
            if 0 <= position < len(call.args) and not isinstance(call.args[position], ast.Starred):
                values.append(call.args[position])
            if name not in OF_ANOTHER_KIND:
                codes |= {code for value in values for code in expanded(value)}
    return codes


@pytest.fixture(scope="module")
def trees():
    return sources()


def test_every_code_in_the_source_is_registered(trees):
    """No command gives a code that the table lacks."""
    codes = given_codes(trees)
    assert len(codes) > 60, "the scan finds the codes"
    assert sorted(codes - set(CODES) - set(STATUS_OF)) == [], "those of requests are in docs/serve.md"


def test_scan_finds_a_code_that_is_not_registered():
    """The scan reads constants, alternatives, parts and positions."""
    text = "def helper(what, code): ...\nhelper('x', 'a-new-code')\nE(code='b' if x else 'c')\nE(code=f'{kind}-d')"
    assert given_codes({Path("x.py"): ast.parse(text)}) == {"a-new-code", "b", "c", "ct-d", "mask-d"}


def test_every_registered_code_is_in_the_source(trees):
    """The table has no row that no command gives."""
    texts = {n.value for t in trees.values() for n in ast.walk(t) if isinstance(n, ast.Constant)}
    codes = {code for code in CODES if code not in texts} - given_codes(trees)
    assert sorted(codes) == []


def test_codes_are_kebab_case_and_not_retired():
    """A code is lower-case words with hyphens; a retired one is not given again."""
    assert [code for code in CODES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)] == []
    assert set(CODES) & set(RETIRED_CODES) == set()


def test_issue_takes_its_severity_from_the_table():
    """`Issue.of` looks a code up; an unknown code raises."""
    issue = Issue.of("ct-unit", "what", "how", case_id="P1")
    assert (issue.severity, issue.case_id) == ("warning", "P1")
    assert issue.to_dict() == {
        "code": "ct-unit", "severity": "warning", "message": "what", "fix": "how", "case_id": "P1", "count": None,
        "names": [],
    }  # fmt: skip
    with pytest.raises(KeyError):
        Issue.of("no-such-code", "what", "how")


@pytest.mark.parametrize("kind", [TmiError, UsageError, UnavailableError, DamagedError])
def test_error_without_a_code_has_that_of_its_class(kind):
    """Every error has a registered code, and is one issue."""
    error = kind("what", fix="how").for_case("P1")
    assert error.code in CODES
    (issue,) = error.issues
    assert issue == Issue(code=error.code, severity="error", message="what", fix="how", case_id="P1")


def test_error_of_several_issues_carries_them_all():
    """The first issue gives code and fix; all become errors of the case of the error."""
    issues = [Issue.of("clinical-range", "a", "fix a"), Issue.of("clinical-unit-doubt", "b", "fix b")]
    error = InputRejectedError.of(issues, what="two values").for_case("P1")
    assert (error.what, error.code, error.fix) == ("two values", "clinical-range", "fix a")
    assert [(i.code, i.severity, i.case_id) for i in error.issues] == [
        ("clinical-range", "error", "P1"), ("clinical-unit-doubt", "error", "P1"),
    ]  # fmt: skip
