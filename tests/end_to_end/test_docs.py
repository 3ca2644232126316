"""Documentation checks: code, command lines, data, links and names in README and docs agree with the repository."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from factories.pages import PAGES, SHELL, blocks, command_lines, inline_code, page_name, prose
from factories.paths import ROOT
from tmi.toolkit.cli.main import COMMANDS, LazyGroup

STAGE_DOCS = runpy.run_path(str(ROOT / ".ci" / "stage_docs.py"))
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=page_name)
NOT_MODULES = ("tmi.toml", "tmi.X", "tmi.models")
"""The project file, a placeholder, and the group of entry points of added models."""


# --- Python


@EVERY_PAGE
def test_python_blocks_compile_and_import_existing_names(page):
    """Each ```python block is valid Python, and what it imports from `tmi` exists."""
    problems = []
    for block in blocks(page, "python", "py"):
        tree = ast.parse(block.text, filename=f"{page.name}:{block.line}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tmi":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "tmi"]
            else:
                continue
            problems += [f"line {block.line}: {name}" for name in names if not resolves(name)]
    assert problems == []


@EVERY_PAGE
def test_dotted_names_in_backquotes_exist(page):
    """`tmi.package.module` or `tmi.package.module.name` in backquotes is a module or an attribute of one."""
    names = {name for code in inline_code(page) for name in re.findall(r"^(tmi(?:\.\w+)+)(?:\(.*\))?$", code)}
    assert [name for name in sorted(names - set(NOT_MODULES)) if not resolves(name)] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of the longest module that it begins with."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if _is_module(parts[:length]):
            break
    else:
        return False
    if length == len(parts):
        return True
    value: Any = importlib.import_module(".".join(parts[:length]))
    for part in parts[length:]:
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def _is_module(parts: list[str]) -> bool:
    try:
        return importlib.util.find_spec(".".join(parts)) is not None
    except ModuleNotFoundError:
        return False


def test_resolves_rejects_names_that_do_not_exist():
    assert resolves("tmi.runtime.Predictor")
    assert resolves("tmi.toolkit.errors")
    assert not resolves("tmi.toolkit.no_such_module")
    assert not resolves("tmi.toolkit.errors.NoSuchError")


# --- command lines


def parse(arguments: list[str]) -> None:
    """Parse a command line as `tmi` does, without running it."""
    command, *rest = arguments
    assert command in COMMANDS, f"tmi {command} is no command"
    LazyGroup(name="tmi").get_command(None, command).make_context(command, rest)


@EVERY_PAGE
def test_command_lines_in_blocks_are_accepted_by_the_parser(page):
    """Each line `tmi ...` of a shell block names a command and options that exist, with values of their type."""
    problems = []
    for block in blocks(page, *SHELL):
        for arguments in command_lines(block):
            if arguments and arguments[0].startswith("-"):  # tmi --help, tmi --version
                continue
            try:
                parse(arguments)
            except Exception as error:  # noqa: BLE001  # click raises several types; each is reported with its page
                problems.append(f"block at line {block.line}: tmi {shlex.join(arguments)}: {error}")
    assert problems == []


@EVERY_PAGE
def test_commands_and_options_in_backquotes_exist(page):
    """`tmi command --option` in running text: the command exists and has the option; arguments may be left out."""
    problems = []
    for code in inline_code(page):
        match = re.match(r"tmi ([a-z][a-z-]*)\b(.*)", code)
        if match is None:
            continue
        command, rest = match.groups()
        if command not in COMMANDS:
            problems.append(f"`{code}`: no command {command}")
            continue
        options = {name for p in LazyGroup(name="tmi").get_command(None, command).params for name in p.opts}
        options |= {"--help", "-h", "--debug"}
        problems += [
            f"`{code}`: no option {o}" for o in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest) if o not in options
        ]
    assert problems == []


@pytest.mark.parametrize(
    "arguments", [["predicts", "case"], ["predict", "case", "--no-such-option"], ["predict", "case", "--batch", "many"]]
)
def test_parse_rejects_wrong_command_lines(arguments):
    with pytest.raises(Exception, match=r"no command|[Nn]o such option|valid integer"):
        parse(arguments)


def test_pages_have_command_lines_and_links():
    """The patterns of this module find something: an empty list would pass every other test."""
    assert sum(1 for page in PAGES for block in blocks(page, *SHELL) for _ in command_lines(block)) > 50
    assert sum(len(re.findall(r"\]\(", prose(page))) for page in PAGES) > 50
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 2


def test_make_targets_that_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        named = {t for code in inline_code(page) for t in re.findall(r"^make ([a-z-]+)", code)}
        named |= {t for b in blocks(page, *SHELL) for t in re.findall(r"^make ([a-z-]+)", b.text, re.M)}
        assert named <= targets, page


# --- data


@EVERY_PAGE
def test_data_blocks_parse(page):
    """Each ```json, ```toml and ```yaml block is a document of its language; `...` may stand for what is left out."""
    readers = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load, "yml": yaml.safe_load}
    problems = []
    for block in blocks(page, *readers):
        text = re.sub(r",\s*\.\.\.(?=\s*[\]}])", "", block.text) if block.language == "json" else block.text
        try:
            readers[block.language](text)
        except ValueError as error:
            problems.append(f"{block.language} block at line {block.line}: {error}")
        except yaml.YAMLError as error:
            problems.append(f"{block.language} block at line {block.line}: {error}")
    assert problems == []


# --- links


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them and the site does."""
    slugs: dict[str, int] = {}
    for title in re.findall(r"^ {0,3}#{1,6} +(.+?) *#*$", prose(page), re.M):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower().replace("`", "")).replace(" ", "-")
        number = slugs.get(slug, 0)
        slugs[slug] = number + 1
        if number:
            slugs[f"{slug}-{number}"] = 1
    return set(slugs)


def link_problems(page: Path) -> list[str]:
    """Relative links and images of a page that lead nowhere."""
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    problems = []
    for url in re.findall(r"\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        if re.match(r"[a-z][a-z0-9+.-]*:", url):
            continue
        path, _, anchor = url.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            problems.append(f"{url} does not exist")
        elif not target.is_relative_to(ROOT):
            problems.append(f"{url} lies outside the repository")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            problems.append(f"{url}: the page has no such heading")
    return problems


@EVERY_PAGE
def test_relative_links_images_and_anchors_exist(page):
    assert link_problems(page) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](nowhere.md)", "nowhere.md does not exist"),
        ("![a](img/nowhere.png)", "img/nowhere.png does not exist"),
        ("[a](docs/predict.md#no-such-heading)", "docs/predict.md#no-such-heading: the page has no such heading"),
        ("[a](#no-such-heading)", "#no-such-heading: the page has no such heading"),
    ],
)
def test_link_problems_finds_a_planted_link(link, problem, monkeypatch):
    """Each way in which a link can be dead is found."""
    monkeypatch.setattr(Path, "read_text", _with_line(link, Path.read_text))
    assert link_problems(ROOT / "README.md") == [problem]


def _with_line(line: str, read_text: Any) -> Any:
    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        return read_text(path, *args, **kwargs) + (f"\n{line}\n" if path.name == "README.md" else "")

    return read


@EVERY_PAGE
def test_repository_paths_in_backquotes_exist(page):
    """`docs/x.md`, `tests/x/` and the like in backquotes are files or folders; `*` and `<name>` are placeholders."""
    if page.name == "CHANGELOG.md":  # it may name what an earlier release had
        return
    roots = ("docs", "tests", "benchmarks", ".ci", ".github", "toolkit", "runtime", "training", "export")
    path = re.compile(rf"(?:{'|'.join(map(re.escape, roots))})/[\w./-]+")
    named = {code for code in inline_code(page) if path.fullmatch(code)}
    places = [ROOT, *(ROOT / package / "tmi" for package in ("toolkit", "runtime", "training", "export"))]
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


@EVERY_PAGE
def test_tests_that_pages_name_exist(page):
    """A test named as `tests/x.py::test_y` in backquotes exists."""
    if page.name == "CHANGELOG.md":  # it may name what an earlier release had
        return
    named = {code for code in inline_code(page) if re.fullmatch(r"tests/[\w/]+\.py::\w+", code)}
    assert [name for name in sorted(named) if not _test_exists(name)] == []


def _test_exists(name: str) -> bool:
    path, _, function = name.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
    return f"def {function}(" in text


def test_every_promise_of_the_threat_model_names_a_test():
    """Each row of a table of promises, in SECURITY.md too, names a test, and each attacker has such a table."""
    page = ROOT / "docs" / "threat-model.md"
    attackers = page.read_text(encoding="utf-8").split("## Attackers and promises")[1].split("\n### ")[1:]
    assert len(attackers) >= 6
    for section in attackers:
        rows = [line for line in section.splitlines() if line.startswith("| ") and "| --- |" not in line]
        assert rows[0] == "| promise | test |", section
        assert len(rows) > 1
        assert [row for row in rows[1:] if "`tests/" not in row] == []
    assert not _test_exists("tests/end_to_end/test_docs.py::test_that_nobody_wrote")
    scope = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    assert len(scope.splitlines()) >= 9
    assert [row for row in scope.splitlines() if "`tests/" not in row] == []


# --- site


class _SiteLoader(yaml.SafeLoader):
    """Reads mkdocs.yml; tags that name Python objects become None."""


_SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def site_config() -> dict[str, Any]:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_SiteLoader)
    assert isinstance(config, dict)
    return config


def nav_pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return list(itertools.chain.from_iterable(nav_pages(entry) for entry in entries))


def test_site_contents_list_every_page_once(tmp_path):
    """Staging finds no dead link, and the contents of the site have each staged page exactly once."""
    assert STAGE_DOCS["stage"](tmp_path / "site") == []
    staged = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.md")}
    listed = nav_pages(site_config()["nav"])
    assert sorted(listed) == sorted(staged)


def test_site_is_strict_and_loads_nothing_from_other_hosts():
    config = site_config()
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    assert set(config["validation"].values()) == {"warn"}  # strict makes each warning an error
    assert not {"extra_css", "extra_javascript"} & set(config)


def test_staging_rewrites_links_for_the_site():
    """A link written for the repository leads to the page's place in the site; code is left alone."""
    rewritten = STAGE_DOCS["rewritten"]
    text = (
        "[a](../CONTRIBUTING.md#commits) [b](../README.md) ![c](img/pipeline.svg) `[d](no.md)`\n```\n[e](no.md)\n```\n"
    )
    want = "[a](contributing.md#commits) [b](index.md) ![c](img/pipeline.svg) `[d](no.md)`\n```\n[e](no.md)\n```\n"
    assert rewritten(text, "docs/import.md", "import.md") == (want, [])
    assert rewritten("[a](docs/parity.md#bounds)", "SECURITY.md", "security.md") == ("[a](parity.md#bounds)", [])
    assert rewritten("[a](../predict.md)", "docs/results/README.md", "results/README.md") == ("[a](../predict.md)", [])


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](no-such-page.md)", "docs/import.md: no-such-page.md does not exist"),
        ("![a](img/no-such-image.png)", "docs/import.md: img/no-such-image.png does not exist"),
        (
            "[a](../Makefile)",
            "docs/import.md: ../Makefile is not part of the site; name the file in backquotes, without a link",
        ),
    ],
)
def test_staging_reports_links_that_the_site_cannot_have(link, problem):
    assert STAGE_DOCS["rewritten"](link, "docs/import.md", "import.md")[1] == [problem]


# --- architecture page


@pytest.mark.parametrize("package", ["toolkit", "runtime", "training", "export"])
def test_architecture_page_lists_every_room(package):
    """The table of a package has its sub-packages and the modules beside them, and so has the diagram."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(f"### `tmi.{package}`")[1].split("\n#")[0]
    listed = re.findall(r"^\| `([\w.]+)/?` \|", section, re.M)
    folder = ROOT / package / "tmi" / package
    rooms = [path.parent.name for path in folder.glob("*/__init__.py")]
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert sorted(listed) == sorted(rooms + modules)
    diagram = (ROOT / "docs" / "img" / "architecture.svg").read_text(encoding="utf-8")
    assert [room for room in listed if not re.search(rf">{re.escape(room)}[ <]", diagram)] == []
