"""Worker process of `tmi bench`: one engine on one bundle, controlled by lines of JSON.

    python -m tmi.runtime.cli.bench_worker '{"bundle": ..., "engine": ..., "threads": ..., "cases": [...], ...}'

The worker imports what `tmi predict` imports, opens the bundle, predicts the first case and writes one line. For every
line on standard input, `{"cases": [numbers], "batch": n}`, it predicts those cases and writes one line. At the end of
its input it writes its peak memory. Start-up, peak memory and imports are thus those of one engine alone.
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
"""Packages that a torch-free engine must not import."""
WORKER = ("-m", "tmi.runtime.cli.bench_worker")
"""Arguments of the Python interpreter that start this process."""
STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Peak resident memory of this process.

    Read from the kernel's record of the address space if available: `ru_maxrss` survives exec, so it would be that of
    the parent process if the parent used more memory.
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
    """Serve until standard input ends; a `TmiError` is written as a line and ends the process."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the protocol on descriptor 1
    # Importing the command line is part of the start-up time of `tmi predict`.
    import tmi.runtime.cli.predict
    import tmi.toolkit.cli.main  # noqa: F401
    from tmi.toolkit.errors import TmiError

    try:
        _serve(json.loads(sys.argv[1]), out)
    except TmiError as error:
        _send(out, {"error": {"kind": type(error).__name__, "what": str(error), "fix": error.fix}})
        return int(error.exit_code)
    return 0


def _serve(request: dict[str, Any], out: TextIO) -> None:
    from tmi.runtime.serving.predictor import Predictor, resolve_cases
    from tmi.runtime.serving.results import result_to_json
    from tmi.toolkit.cases.case import parse_mask_label
    from tmi.toolkit.storage.serialization import to_json

    label = request["mask_label"]  # null, a number, or a list of numbers
    labels = label if isinstance(label, list) else None if label is None else [label]
    cases = resolve_cases(request["cases"], mask_label=parse_mask_label(labels))
    keys = [Path(key) for key in request["keys"]]
    opened = Predictor.open(request["bundle"], engine=request["engine"], threads=request["threads"], key=keys)
    with opened as predictor:

        def predict(chosen: list[int], batch: int) -> dict[str, Any]:
            start = perf_counter()
            results = predictor.predict([cases[n] for n in chosen], batch=batch)
            seconds = perf_counter() - start
            return {"seconds": seconds, "answers": [result_to_json(r) for r in results]}

        _send(out, {**predict([0], 1), "engine": to_json(predictor.engine_record)})
        for line in sys.stdin:
            step = json.loads(line)
            _send(out, predict(step["cases"], step["batch"]))
        packages = {name.partition(".")[0] for name in sys.modules}
        _send(out, {"peak_bytes": peak_bytes(), "heavy": sorted(packages & set(HEAVY_PACKAGES))})


if __name__ == "__main__":
    sys.exit(main())
