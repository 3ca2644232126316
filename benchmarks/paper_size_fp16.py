"""How accurate is FP16 at full size, and can TensorRT-RTX plans for SM80 be built on a machine without a GPU?

The program writes a run of preset `paper` with random weights (one fold: ResNet-50 on 64x512x512 voxels, BERT-base,
fusion) and exports float32 ONNX. It converts every graph to a strongly typed FP16 graph and builds a plan for SM80. It
runs the real case of `paper_size.py` in eager float32, in emulated FP16 and, with --float64, in eager float64. The
fusion always reads the features of eager float32, so that each error is that of one graph. Step `export` runs
`tmi export` with every parity check, without the real case, in a new process. The last line is JSON.

    python benchmarks/paper_size_fp16.py [--out FOLDER] [--float64] [--grid D,H,W]
                                         [--steps write,graphs,plans,emulate,export]

Existing files of a step are reused, so that steps can be run one by one. A smaller --grid, in another folder, resamples
the CT to fewer voxels for the same network, to save time and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TMI_TEST_DATA", ROOT.parent / "shared" / "data"))
GRAPHS = ("ct-0", "text-0", "fusion")
STEPS = ("write", "graphs", "plans", "emulate", "export")
LIVER_LABEL = 5
GRID: list[int] = []
"""Voxels D, H, W; empty for those of the preset."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--float64", action="store_true", help="also against eager float64: some minutes")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated, default: all")
    parser.add_argument("--grid", help="voxels D,H,W of the CT; default: those of the preset")
    options = parser.parse_args()
    if options.grid:
        GRID[:] = [int(n) for n in options.grid.split(",")]
    work = options.out or Path(tempfile.mkdtemp(prefix="paper-fp16-"))
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "benchmark": "paper_size_fp16",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    steps = {"write": write, "graphs": graphs, "plans": plans, "emulate": emulate, "export": export}
    for name in options.steps.split(","):
        start = time.perf_counter()
        result[name] = steps[name](work, options.float64)
        result[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
        result["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
        print(f"{name}: {result[f'{name}_seconds']} s, peak {result['peak_gib']} GiB", flush=True)
    print(json.dumps(result))


def write(work: Path, float64: bool) -> None:
    """Write the run, the real case and the float32 graphs."""
    sys.path.insert(0, str(ROOT / "tests"))
    from factories.random_run import write_random_run
    from factories.real_case import write_real_case
    from tmi.export.graphs.onnx import write_onnx
    from tmi.export.graphs.partition import example_inputs
    from tmi.toolkit.config.presets import paper

    if not (work / "run").is_dir():
        write_random_run(work / "run", paper(), folds=1, vocab=DATA / "bert-base-cased-vocab" / "vocab.txt")
        write_real_case(work / "real-case", DATA)
    _, partition, models = parts(work)
    for name, spec in specs(work).items():
        if not (work / f"{name}.onnx").is_file():
            plan = next((e for e in partition.encoders if e.name == name), None)
            module = models.fusion(partition.folds) if plan is None else models.encoder(plan)
            write_onnx(module, spec, example_inputs(spec), work / f"{name}.onnx")


def graphs(work: Path, float64: bool) -> dict[str, Any]:
    """Convert the graphs to FP16; counts of nodes and sizes."""
    from tmi.export.tensorrt.fp16_conversion import save, to_fp16

    results = {}
    for name in GRAPHS:
        half = to_fp16(work / f"{name}.onnx")
        save(half.model, work / f"{name}.fp16.onnx")
        size = round((work / f"{name}.fp16.onnx").stat().st_size / 1e6, 1)
        results[name] = {"nodes_in_half": half.fp16_count, "nodes_in_float": len(half.float32_nodes), "megabytes": size}
        print(f"  {name}: {results[name]}", flush=True)
    return results


def plans(work: Path, float64: bool) -> dict[str, Any]:
    """Build a plan of each graph for SM80 and batches of 1 to 4."""
    import tensorrt_rtx

    from tmi.export.tensorrt.builder import BuildOptions, build_plan
    from tmi.export.tensorrt.fp16_conversion import to_fp16

    options = BuildOptions(target="sm80", max_batch=4, max_length=512)
    results = {}
    for name, spec in specs(work).items():
        float32_nodes = to_fp16(work / f"{name}.onnx").float32_nodes
        start = time.perf_counter()
        plan = build_plan(tensorrt_rtx, work / f"{name}.fp16.onnx", spec, options, float32_nodes=float32_nodes)
        results[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "megabytes": round(len(plan.data) / 1e6, 1),
            "layers": {kind: dict(counts) for kind, counts in plan.record.layers.items()},
            "computing_half": plan.audit.count("HALF"),
            "computing_float": plan.audit.count("FLOAT"),
            "unexplained": plan.audit.unexplained,
        }
        print(f"  {name}: {results[name]}", flush=True)
    return results


def emulate(work: Path, float64: bool) -> dict[str, Any]:
    """Errors of emulated FP16 on the real case, relative to eager."""
    from tmi.export.tensorrt.fp16_conversion import FP16_MAX, read_typed
    from tmi.export.tensorrt.fp16_simulation import emulate_fp16, emulation_session, run_emulation
    from tmi.runtime.verification.parity import relative_error

    inputs, references = real_inputs(work, float64)
    results: dict[str, Any] = {}
    for name, spec in specs(work).items():
        loaded = emulation_session(emulate_fp16(read_typed(work / f"{name}.fp16.onnx")), threads=os.cpu_count() or 1)
        start = time.perf_counter()
        outputs, extremes = run_emulation(loaded, [spec.outputs[0].name], inputs[name])
        (output,) = outputs.values()
        top = max(extremes.values(), key=lambda e: e.largest)
        results[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "tensors": len(extremes),
            "not_finite": sum(not e.finite for e in extremes.values()),
            "largest": top.largest,
            "largest_at": f"{top.node} ({top.operator})",
            "share_of_range": top.largest / FP16_MAX,
            "errors": {kind: relative_error(output, np.asarray(r[name])) for kind, r in references.items()},
        }
        if "float64" in references:
            eager = np.asarray(references["float32"][name])
            results[name]["float32_itself"] = relative_error(eager, np.asarray(references["float64"][name]))
        print(f"  {name}: {results[name]}", flush=True)
        del loaded
    return results


def export(work: Path, float64: bool) -> dict[str, Any]:
    """Run `tmi export`; its time, and its peak resident memory by the kernel's accounting."""
    bundle = work / "bundle"
    words = ["export", work / "run", "--engine", "trt-rtx", "--precision", "fp16", "--target", "sm80", "--out", bundle]
    start = time.perf_counter()
    command = (sys.executable, "-c", "from tmi.toolkit.cli.main import main; main()", *map(str, words), "--force")
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"tmi export: exit code {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 1),
        "bundle_gib": round(sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file()) / 2**30, 2),
    }


def parts(work: Path) -> tuple[Any, Any, Any]:
    from tmi.export.graphs.partition import FoldModels, partition_run
    from tmi.toolkit.run_folder import RunFolder

    run = RunFolder.open(work / "run").require_finished()
    return run, partition_run(run), FoldModels(run)


def on_grid(config: Any) -> Any:
    return replace(config, ct=replace(config.ct, shape_DHW=tuple(GRID))) if GRID else config


def specs(work: Path) -> dict[str, Any]:
    from tmi.runtime.bundle.consistency import graph_spec
    from tmi.toolkit.config.presets import paper

    return {name: graph_spec(on_grid(paper()), name.partition("-")[0], name, folds=1) for name in GRAPHS}


def real_inputs(work: Path, float64: bool) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Inputs of each graph for the real case, and the outputs of eager by precision and graph."""
    import copy

    import torch

    from slab_convolution import use_slab_convolutions
    from tmi.toolkit.cases.case import find_cases
    from tmi.toolkit.clinical.tokenizer import Tokenizer
    from tmi.toolkit.preprocessing.pipeline import prepare_case
    from tmi.toolkit.radiomics.scaler import RadiomicsScaler

    run, _, models = parts(work)
    (case,) = find_cases([work / "real-case"], mask_label=LIVER_LABEL)
    prepared = prepare_case(case, on_grid(run.config), run.schema)
    clinical = run.config.clinical
    text = Tokenizer.load(run.fold(0).tokenizer).encode(
        [prepared.text], max_length=clinical.max_length, pad_to_max=clinical.pad_to_max
    )
    radiomics = RadiomicsScaler.load(run.fold(0).scaler).transform(prepared.radiomics_F[None]).values_NF
    references: dict[str, dict[str, Any]] = {}
    network = models.network(0)
    for kind in ("float32", "float64") if float64 else ("float32",):
        start = time.perf_counter()
        dtype = getattr(torch, kind)
        model = network if kind == "float32" else use_slab_convolutions(copy.deepcopy(network).to(dtype))
        with torch.inference_mode():
            ct_features = model.encode_ct(torch.from_numpy(prepared.ct_1DHW[None]).to(dtype))
            text_features = model.encode_text(
                torch.from_numpy(text.input_ids_BT), torch.from_numpy(text.attention_mask_BT)
            )
            if references:  # the fusion reads the float32 features, as its graph does
                first = references["float32"]
                features = (torch.from_numpy(first["ct-0"]).to(dtype), torch.from_numpy(first["text-0"]).to(dtype))
            else:
                features = (ct_features, text_features)
            logits = model.fuse(*features, torch.from_numpy(radiomics).to(dtype)).logits_BK
        references[kind] = {
            "ct-0": ct_features.numpy(),
            "text-0": text_features.numpy(),
            "fusion": logits.numpy()[:, None],
        }
        print(f"  eager {kind}: {time.perf_counter() - start:.1f} s", flush=True)
        del model
    eager = references["float32"]
    inputs = {
        "ct-0": {"ct": prepared.ct_1DHW[None]},
        "text-0": {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT},
        "fusion": {
            "ct_features": eager["ct-0"][:, None],
            "text_features": eager["text-0"][:, None],
            "radiomics": radiomics[:, None],
        },
    }
    return inputs, references


if __name__ == "__main__":
    main()
