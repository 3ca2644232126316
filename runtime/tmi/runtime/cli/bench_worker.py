"""The process that `tmi bench` times: one engine on one bundle, asked through lines of JSON.

    python -m tmi.runtime.cli.bench_worker '{"bundle": ..., "engine": ..., "threads": ..., "cases": [...], ...}'

It imports what `tmi predict` imports, opens the bundle, answers the first case and says so in one line; every line on
standard input, `{"cases": [numbers], "batch": n}`, is answered by one; at the end of its input it says what it took.
A process of its own, so that start-up, peak memory and imports are those of one engine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

HEAVY_PACKAGES = ("torch", "transformers", "monai", "lightning", "SimpleITK", "radiomics")
"""Packages that no torch-free engine may import."""
WORKER = ("-m", "tmi.runtime.cli.bench_worker")
"""What the Python interpreter is given to start this process."""
STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Peak resident memory of this process.

    From the kernel's account of the address space where there is one: `ru_maxrss` outlives exec, and would be that of
    the process that started this one where that is larger.
    """
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _send(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def main() -> int:
    """Serve until standard input ends; a `TmiError` is told as a line and ends it."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    # the command line is a part of what a user waits for
    import tmi.runtime.cli.predict
    import tmi.toolkit.cli.main  # noqa: F401
    from tmi.toolkit.errors import TmiError

    try:
        _serve(json.loads(sys.argv[1]), out)
    except TmiError as error:
        _send(out, {"error": {"kind": type(error).__name__, "what": str(error), "fix": error.fix}})
        return int(error.exit_code)
    return 0


def _serve(asked: dict[str, Any], out: TextIO) -> None:
    from tmi.runtime.serving.predictor import Predictor, resolve_cases
    from tmi.runtime.serving.results import result_to_json
    from tmi.toolkit.storage.serialization import to_json

    cases = resolve_cases(asked["cases"], mask_label=asked["mask_label"])
    with Predictor.open(asked["bundle"], engine=asked["engine"], threads=asked["threads"]) as predictor:

        def answer(chosen: list[int], batch: int) -> dict[str, Any]:
            start = perf_counter()
            answers = predictor.predict([cases[n] for n in chosen], batch=batch)
            seconds = perf_counter() - start
            return {"seconds": seconds, "answers": [result_to_json(a) for a in answers]}

        _send(out, {**answer([0], 1), "engine": to_json(predictor.engine_record)})
        for line in sys.stdin:
            request = json.loads(line)
            _send(out, answer(request["cases"], request["batch"]))
        packages = {name.partition(".")[0] for name in sys.modules}
        _send(out, {"peak_bytes": peak_bytes(), "heavy": sorted(packages & set(HEAVY_PACKAGES))})


if __name__ == "__main__":
    sys.exit(main())
