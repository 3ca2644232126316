"""Collect the pages of the documentation site: `docs/` and the pages that a code host expects elsewhere.

CONTRIBUTING.md, SECURITY.md and the like stay where a code host looks for them, and the site shows them too. A relative
link is written for the repository; its copy in the site is rewritten. A link or image is an error if its file does not
exist or is not part of the site. Anchors are checked by the site generator.

    python .ci/stage_docs.py build/docs
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "tests.md",
}
"""Page of the repository outside `docs/` -> its name in the site."""
FRONT = {"README.md": "index.md"}
"""Page of the repository -> the page of the site that a link to it leads to."""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))")
CODE = re.compile(r"(^ *(?P<fence>```+|~~~+).*?^ *(?P=fence)[^\S\n]*$|`[^`\n]+`)", re.M | re.S)


def site_page(target: str) -> str | None:
    """Where a file of the repository is in the site; None where it is not part of it."""
    if target.startswith(f"{DOCS}/"):
        return target.removeprefix(f"{DOCS}/")
    return (PAGES | FRONT).get(target)


def rewritten(text: str, source: str, page: str) -> tuple[str, list[str]]:
    """The text of a page with its links as they are in the site, and what is wrong with them.

    Args:
        text: of the page.
        source: the page in the repository.
        page: the page in the site.
    """
    problems: list[str] = []

    def link(match: re.Match[str]) -> str:
        before, url, after = match.groups()
        path, hash_mark, anchor = url.partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:", url):  # an anchor of this page, or another host
            return match.group()
        target = os.path.normpath(PurePosixPath(source).parent / path)
        there = site_page(target)
        if not (ROOT / target).is_file():
            problems.append(f"{source}: {url} does not exist")
        elif there is None:
            problems.append(f"{source}: {url} is not part of the site; name the file in backquotes, without a link")
        else:
            relative = os.path.relpath(there, PurePosixPath(page).parent)
            return f"{before}{relative}{hash_mark}{anchor}{after}"
        return match.group()

    # split() gives text, code, name of the fence, text, ...: only text has links
    parts = CODE.split(text)
    for number in range(0, len(parts), 3):
        parts[number] = LINK.sub(link, parts[number])
    return "".join(part for number, part in enumerate(parts) if number % 3 != 2), problems


def stage(out: Path) -> list[str]:
    """Write the pages and files of the site to `out`, which is replaced; what is wrong with their links."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / DOCS, out)
    sources = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / DOCS).rglob("*.md"))}
    sources |= {name: ROOT / name for name in PAGES}
    problems = []
    for source, path in sources.items():
        page = site_page(source)
        if page is None or not path.is_file():
            problems.append(f"{source} does not exist")
            continue
        text, found = rewritten(path.read_text(encoding="utf-8"), source, page)
        problems += found
        (out / page).write_text(text, encoding="utf-8")
    return problems


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 1 a link is broken, 2 wrong usage."""
    if len(arguments) != 1:
        print("usage: stage_docs.py FOLDER", file=sys.stderr)
        return 2
    problems = stage(Path(arguments[0]))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
