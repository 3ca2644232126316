"""Walk of one `tmi` command through the modules of this package: which it enters, and how often it comes back.

    python benchmarks/call_walk.py predict case/ --bundle bundle/ --engine onnx
    python benchmarks/call_walk.py export runs/first --out bundle/

A walk is the sequence of modules on the calling thread, in the order of their calls. A module is *entered* if one of
its functions is called from another module; a call within a module, and a return to a caller, is no step. Each further
step to it is a *re-entry*. Rooms are counted in the same way. What an import runs is left out, and so are the creation
of records and the rooms that every module uses as it does the standard library (`SKIPPED`). A pipeline in which each
stage is called once has few re-entries; a braid of modules that call each other has many. The last line is JSON.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

PACKAGES = ("tmi.toolkit.", "tmi.runtime.", "tmi.training.", "tmi.export.")
SKIPPED = tuple(f"tmi.toolkit.{name}" for name in ("errors", "issues.", "storage.", "compute.", "config."))
"""Modules that are no stage of anything: errors and issues, files and hashes, timers and threads, settings."""


def room_of(module: str) -> str:
    """The room of a module: `tmi.runtime.serving.predictor` -> `tmi.runtime.serving`."""
    return ".".join(module.split(".")[:3])


class Walk:
    """Sequence of modules that are entered while `record` is active."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the calls of this thread."""
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED or code.co_name.startswith(("<", "__")):
            return  # the body of a module or class, a lambda, a comprehension, a record that is created
        module, caller = str(frame.f_globals.get("__name__", "")), frame.f_back
        if not module.startswith(PACKAGES) or module.startswith(SKIPPED) or self.modules[-1:] == [module]:
            return
        if caller is None or (caller.f_globals is not frame.f_globals and caller.f_code.co_name != "<module>"):
            self.modules.append(module)

    def summary(self) -> dict[str, Any]:
        """Modules and rooms entered and re-entered."""
        rooms = [
            room for n, room in enumerate(map(room_of, self.modules)) if n == 0 or room_of(self.modules[n - 1]) != room
        ]
        return {
            "modules": len(set(self.modules)),
            "module_reentries": len(self.modules) - len(set(self.modules)),
            "rooms": len(set(rooms)),
            "room_reentries": len(rooms) - len(set(rooms)),
        }


def walk_command(arguments: Sequence[str]) -> Walk:
    """Run `tmi ARGUMENTS` in this process and return its walk; what it prints is discarded.

    Raises:
        SystemExit: the command failed.
    """
    from tmi.toolkit.cli.main import main

    run: Callable[[], object] = main
    walk, before, printed = Walk(), sys.argv, io.StringIO()
    sys.argv = ["tmi", *arguments]
    try:
        with contextlib.redirect_stdout(printed), walk.record():
            run()
    except SystemExit as stopped:
        if stopped.code not in (0, None):
            raise
    finally:
        sys.argv = before
    return walk


def main() -> None:
    """Print the walk of the command in the arguments."""
    walk = walk_command(sys.argv[1:])
    for module in dict.fromkeys(walk.modules):
        print(f"{walk.modules.count(module):5d}  {module}")
    print(json.dumps(walk.summary()))


if __name__ == "__main__":
    main()
