"""Is the CT encoder as fast in `tmi` as in OpenVINO's `benchmark_app`?

Both run the same graph with the same shape, precision and latency hint, one request at a time. The benchmark compares
their median latencies in turn.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from tmi.runtime import Predictor
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import open_engine

HINTS = {"float32": "f32", "bfloat16": "bf16"}
FORWARDS = 5


def app_seconds(bundle: Bundle, precision: str) -> float:
    """Median latency of an inference in `benchmark_app`, compilation excluded."""
    app = Path(sys.executable).with_name("benchmark_app")
    program = str(app) if app.is_file() else shutil.which("benchmark_app")
    if program is None:
        pytest.skip("benchmark_app is not installed")
    graph = bundle.artefact(bundle.manifest.graph("ct-0"), "onnx")
    shape = ",".join(map(str, (1, 1, *bundle.manifest.config.ct.shape_DHW)))
    argv = [program, "-m", str(graph), "-d", "CPU", "-hint", "latency", "-api", "sync", "-niter", str(FORWARDS + 1),
            "-shape", f"[{shape}]", "-infer_precision", HINTS[precision]]  # fmt: skip
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    median = re.search(r"Median:\s+([\d.]+) ms", printed)
    assert median, printed[-2000:]
    return float(median[1]) / 1000


def test_ct_forward_against_benchmark_app(record, one_fold: Path) -> None:
    with Predictor.open(one_fold) as predictor:
        bundle, name, precision = predictor.bundle, predictor.engine_record.name, predictor.engine_record.precision
    if not name.startswith("openvino"):
        pytest.skip(f"the default engine here is {name}")
    shape = bundle.manifest.config.ct.shape_DHW
    noise = np.random.default_rng(0).random((1, 1, *shape), dtype=np.float32)
    latencies: list[float] = []
    app: list[float] = []

    def rounds() -> None:
        for _ in range(min(3, record.repeats)):
            app.append(app_seconds(bundle, precision))
            with open_engine(name, bundle) as engine:
                engine.run("ct-0", {"ct": noise})
                seconds = []
                for _ in range(FORWARDS):
                    start = perf_counter()
                    engine.run("ct-0", {"ct": noise})
                    seconds.append(perf_counter() - start)
            latencies.append(statistics.median(seconds))

    record.once(rounds)
    record.note("tmi s", statistics.median(latencies), "s", rounds=latencies, precision=precision)
    record.note("benchmark_app s", statistics.median(app), "s", rounds=app, precision=precision)
    record.note("tmi / benchmark_app", statistics.median(a / b for a, b in zip(latencies, app, strict=True)), "x")
