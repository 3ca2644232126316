"""Check the first lines of a commit message: the commit-msg hook of `.pre-commit-config.yaml`.

The subject has at most 72 characters and no final full stop, and an empty line separates it from the body. Subjects
that git writes itself (merges, reverts, fixups) are accepted as they are.

    python .ci/check_subject.py .git/COMMIT_EDITMSG
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

LONGEST = 72
"""Characters that `git log --oneline` and the pages of a code host show without cutting."""
WRITTEN_BY_GIT = ("Merge ", 'Revert "', "fixup! ", "squash! ", "amend! ")
SCISSORS = "# ------------------------ >8 ------------------------"
"""`git commit --verbose` puts the diff below this line."""


def problems(message: str) -> list[str]:
    """What is wrong with a message, one sentence each; comment lines are ignored as git ignores them."""
    kept = message.partition(SCISSORS)[0]
    lines = [line.rstrip() for line in kept.splitlines() if not line.startswith("#")]
    while lines and not lines[0]:
        lines.pop(0)
    if not lines:
        return ["the message is empty"]
    subject = lines[0]
    if subject.startswith(WRITTEN_BY_GIT):
        return []
    found = []
    if len(subject) > LONGEST:
        found.append(f"the subject has {len(subject)} characters, at most {LONGEST} are allowed")
    if subject.endswith("."):
        found.append("the subject ends with a full stop")
    if len(lines) > 1 and lines[1]:
        found.append("an empty line must follow the subject")
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 for a good message, 1 for a bad one, 2 for wrong usage."""
    if len(arguments) != 1:
        print("usage: check_subject.py FILE", file=sys.stderr)
        return 2
    message = Path(arguments[0]).read_text(encoding="utf-8")
    found = problems(message)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        print(f"  fix: write what changed in at most {LONGEST} characters, and why in the body", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
