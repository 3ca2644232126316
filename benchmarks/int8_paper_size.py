"""How much faster than float32 is the CT encoder in INT8 at full size, how much memory does it take, how exact is it?

The program writes the CT encoder of preset `paper` with random weights, quantises every layer that can be, on two
golden volumes, and runs OpenVINO in float32, bfloat16 (where the processor has it) and INT8: first each in a process of
its own for the peak memory, then in turn in one process. Errors are those of features of a golden volume that did not
calibrate. The last line is JSON.

    python benchmarks/int8_paper_size.py [--size paper|middle] [--rounds 5] [--out FOLDER] [--plan sm80]

With --plan the program only makes the signed graph of TensorRT from the same ranges, runs it in ONNX Runtime, and
builds the plan with TensorRT-RTX for that target: errors of both graphs, layers, and sizes.

Files that exist in --out are used again. Stop all other work for seconds that count; ratios need that less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench_inputs import SIZES
from tmi.runtime.bundle.consistency import graph_spec
from tmi.runtime.engines.host import cpu_name
from tmi.runtime.engines.openvino import BFLOAT16, DEVICE, FLOAT32, PRECISION, missing_bfloat16, shared_core
from tmi.runtime.verification.golden_inputs import make_golden
from tmi.runtime.verification.parity import relative_error
from tmi.toolkit.compute.cpu import available_cores

ENGINES = {
    "openvino": ("ct.onnx", FLOAT32),
    "openvino-bf16": ("ct.onnx", BFLOAT16),
    "openvino-int8": ("ct.int8.onnx", FLOAT32),
}
VOLUMES = "volumes.npy"
CALIBRATING = 2
"""Number of volumes that calibrate; one more measures errors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="paper")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--plan", metavar="TARGET", help="build a plan of the signed graph instead, for example sm80")
    parser.add_argument("--memory-of", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_gib(options.out, options.memory_of))
        return
    with tempfile.TemporaryDirectory(prefix="int8-paper-size-") as temporary:
        work = options.out or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "ct.int8.onnx").is_file():
            write(work, options.size)
        if options.plan:
            plan(work, options.size, options.plan)
        else:
            measure(work, options.size, options.rounds)


def measure(work: Path, size: str, rounds: int) -> None:
    names = [name for name in ENGINES if name != "openvino-bf16" or missing_bfloat16() is None]
    words = (sys.executable, __file__, "--out", str(work), "--memory-of")
    memory = {name: float(subprocess.check_output([*words, name]).split()[-1]) for name in names}
    run = {name: compiled(work, name) for name in names}
    volumes = np.load(work / VOLUMES, mmap_mode="r")
    features = {name: [one(run[name], volume) for volume in volumes] for name in names}  # the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 else names[::-1]:
            start = time.perf_counter()
            one(run[name], volumes[0])
            seconds[name].append(time.perf_counter() - start)
    result: dict[str, Any] = {
        "benchmark": "int8_paper_size",
        "size": size,
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "engines": {
            name: {
                "median_seconds": round(statistics.median(seconds[name]), 3),
                "float32_over_this": round(statistics.median(ratios(seconds["openvino"], seconds[name])), 2),
                "error_of_features": max(
                    relative_error(a, b)
                    for a, b in zip(features[name][CALIBRATING:], features["openvino"][CALIBRATING:], strict=True)
                ),
                "peak_gib": round(memory[name], 2),
            }
            for name in names
        },
    }
    for name, row in result["engines"].items():
        print(f"{name:14} " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    print(json.dumps(result))


def plan(work: Path, size: str, target: str) -> None:
    """Print errors of the signed and the unsigned graph, and the layers of the plan of the signed one, as JSON."""
    import tensorrt_rtx

    from tmi.export.quantization.folding import folded_graph
    from tmi.export.quantization.measuring import outputs_of
    from tmi.export.quantization.qdq import STEPS, UNSIGNED_STEPS, quantisable, quantised, unsigned
    from tmi.export.tensorrt.builder import BuildOptions, build_plan

    model, written = folded_graph(work / "ct.onnx", nonnegative=True), onnx.load(work / "ct.int8.onnx")
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in written.graph.initializer if t.name.endswith(".scale")}
    positive = unsigned(model)
    values = {value for read in quantisable(model).values() for value in read}
    steps = {value: UNSIGNED_STEPS if value in positive else STEPS for value in values}
    magnitudes = {value: float(scales[f"{value}.scale"]) * steps[value] for value in values}
    signed = quantised(model, magnitudes, quantisable(model), signed=True)
    onnx.save(signed, work / "ct.int8-signed.onnx")
    volumes = [{"ct": volume} for volume in np.load(work / VOLUMES)[CALIBRATING:]]
    exact, *others = (outputs_of(graph, volumes, threads=available_cores()) for graph in (model, written, signed))
    errors = [relative_error(np.concatenate(output), np.concatenate(exact)) for output in others]
    spec = graph_spec(SIZES[size].config, "ct", "ct", folds=1)
    start = time.perf_counter()
    built = build_plan(tensorrt_rtx, work / "ct.int8-signed.onnx", spec, BuildOptions(target=target))
    result = {
        "benchmark": "int8_plan",
        "size": size,
        "target": target,
        "builder": built.record.builder,
        "error_unsigned": errors[0],
        "error_signed": errors[1],
        "layers": {dtype: built.audit.count(dtype) for dtype in ("INT8", "HALF", "FLOAT")},
        "nodes_in_int8": len(built.audit.int8_nodes),
        "graph_bytes": (work / "ct.int8-signed.onnx").stat().st_size,
        "plan_bytes": len(built.data),
        "build_seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(result))


def ratios(first: list[float], second: list[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=True)]


def write(work: Path, size: str) -> None:
    """Write volumes, the float32 graph and the INT8 graph."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from factories.random_run import random_model
    from tmi.export.graphs.onnx import write_onnx
    from tmi.export.graphs.partition import example_inputs
    from tmi.export.quantization.folding import folded_graph
    from tmi.export.quantization.measuring import largest_magnitudes
    from tmi.export.quantization.qdq import quantisable, quantised

    config = SIZES[size].config
    golden = make_golden(config, seed=1, count=2 + CALIBRATING, folds=1, vocabularies={})
    np.save(work / VOLUMES, golden.ct_B1DHW[[0, 2, 3]][:, None])  # row 1 is a constant volume
    spec = graph_spec(config, "ct", "ct", folds=1)
    write_onnx(random_model(config, seed=0).ct_encoder, spec, example_inputs(spec), work / "ct.onnx")
    start = time.perf_counter()
    model = folded_graph(work / "ct.onnx", nonnegative=True)
    inputs = [{"ct": volume} for volume in np.load(work / VOLUMES)[:CALIBRATING]]
    magnitudes = largest_magnitudes(model, inputs, threads=available_cores())
    onnx.save(quantised(model, magnitudes, quantisable(model)), work / "ct.int8.onnx")
    print(f"{len(quantisable(model))} layers quantised in {time.perf_counter() - start:.0f} s", flush=True)


def compiled(work: Path, name: str) -> Any:
    file, precision = ENGINES[name]
    core = shared_core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": available_cores(),
        PRECISION: precision,
    }
    return core.compile_model(core.read_model(work / file), DEVICE, settings)


def one(run: Any, volume: np.ndarray) -> np.ndarray:
    """Features [1,C] of a volume [1,1,D,H,W]."""
    (features,) = run([np.ascontiguousarray(volume)], share_inputs=True, share_outputs=False).values()
    return features


def peak_gib(work: Path, name: str) -> float:
    """Peak resident memory of this process after one pass, `VmHWM`."""
    one(compiled(work, name), np.load(work / VOLUMES, mmap_mode="r")[0])
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


if __name__ == "__main__":
    main()
