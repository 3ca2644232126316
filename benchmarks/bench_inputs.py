"""Inputs of the benchmarks: bundles with random weights and synthetic cases, written once and cached.

Size `paper` is the full-size preset. Size `small` has the same graphs with a reduced network and volume, so that all
benchmarks run on two cores in minutes; its ratios do not apply to the full size. The CT encoder of size `middle` takes
nearly all of a prediction's time, as at full size.

    python benchmarks/bench_inputs.py --size paper --folds 1     # write missing inputs in advance
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.config.schema import Config, CtConfig, CtEncoderConfig, TextEncoderConfig
from tmi.toolkit.errors import TmiError
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.serialization import to_json

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TMI_TEST_DATA", ROOT.parent / "shared" / "data"))
CACHE_FOLDER = ROOT / "build" / "bench" / "inputs"


def small() -> Config:
    """Config with a volume of 64x128x128 voxels, a basic ResNet of four blocks and a BERT of four narrow layers."""
    base = tiny()
    text = TextEncoderConfig(hidden_size=128, layers=4, heads=4, intermediate_size=512, vocab_size=1024)
    ct = CtEncoderConfig(block="basic", layers=(1, 1, 1, 1), planes=(8, 16, 32, 64))
    network = replace(base.network, ct_encoder=ct, text_encoder=text)
    return replace(base, ct=CtConfig(shape_DHW=(64, 128, 128)), network=network)


def middle() -> Config:
    """Config whose CT encoder, a ResNet-50 of half the width on 48x192x192 voxels, takes nearly all of the time."""
    base = small()
    ct = CtEncoderConfig(planes=(32, 64, 128, 256))
    return replace(base, ct=CtConfig(shape_DHW=(48, 192, 192)), network=replace(base.network, ct_encoder=ct))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Network, CT and number of rounds of a size."""

    name: str
    config: Config
    ct_XYZ: tuple[int, int, int]
    """Voxels of the synthetic CT."""
    batches: tuple[int, ...]
    """Batch sizes of `test_batches.py`; at full size, eight volumes do not fit into memory."""
    repeats: int
    """Default number of rounds."""


SIZES = {
    "small": Size(name="small", config=small(), ct_XYZ=(256, 256, 60), batches=(1, 2, 4, 8), repeats=7),
    "middle": Size(name="middle", config=middle(), ct_XYZ=(256, 256, 60), batches=(1, 2), repeats=5),
    "paper": Size(name="paper", config=paper(), ct_XYZ=(512, 512, 120), batches=(1, 2, 4), repeats=5),
}


def bundle(size: Size, *, folds: int, cache: Path = CACHE_FOLDER) -> Path:
    """A bundle of ONNX graphs and eager weights, from the cache or exported.

    The folds share the text encoder, and each has its own CT encoder. A cached bundle is exported again if this version
    of `tmi` cannot open it.
    """
    folder = cache / f"{size.name}-{folds}-{sha256_json(to_json(size.config))[:8]}"
    if _opens(folder):
        return folder
    from factories.random_run import write_random_run
    from tmi.export.bundle.writer import export_run

    run = folder.with_name(folder.name + "-run")
    for stale in (run, folder):
        shutil.rmtree(stale, ignore_errors=True)
    vocab = DATA / "bert-base-cased-vocab" / "vocab.txt"
    vocab_file = vocab if size.name == "paper" and vocab.is_file() else None
    print(f"exporting {folder.name} (cached for the next run)", file=sys.stderr, flush=True)
    write_random_run(run, size.config, folds=folds, shared_text=True, vocab=vocab_file)
    export_run(run, folder, artefacts=("onnx",))
    shutil.rmtree(run)
    return folder


def gpu_bundle(size: Size, engine: str, *, cache: Path = CACHE_FOLDER) -> Path:
    """A bundle of one fold with TensorRT engines for the GPU of this machine, from the cache or exported."""
    folder = cache / f"{size.name}-{engine}-{sha256_json(to_json(size.config))[:8]}"
    if _opens(folder):
        return folder
    from factories.random_run import write_random_run
    from tmi.export.bundle.context import ExportSettings
    from tmi.export.bundle.writer import export_run
    from tmi.export.tensorrt.builder import BuildOptions
    from tmi.runtime.engines.nvidia_driver import find_gpu

    run = folder.with_name(folder.name + "-run")
    for stale in (run, folder):
        shutil.rmtree(stale, ignore_errors=True)
    write_random_run(run, size.config, folds=1)
    gpu = find_gpu()
    target = gpu.target if engine == "trt-rtx" and gpu is not None else None
    export_run(run, folder, artefacts=(engine,), settings=ExportSettings(options=BuildOptions(target=target)))
    shutil.rmtree(run)
    return folder


def _opens(folder: Path) -> bool:
    from tmi.runtime.bundle.reader import open_bundle

    if not folder.is_dir():
        return False
    try:
        open_bundle(folder)
    except TmiError as error:
        print(f"{folder.name}: {error}", file=sys.stderr)
        return False
    return True


def cases(size: Size, count: int, *, cache: Path = CACHE_FOLDER) -> list[Path]:
    """Synthetic cases, each with a CT, a table of 1,781 features and a full record; from the cache or written."""
    from tmi.runtime.benchmark.synthetic_case import write_bench_case
    from tmi.toolkit.clinical.schema import load_schema

    shape = "x".join(map(str, size.ct_XYZ))
    folders = [cache / f"cases-{shape}" / f"made-up-{n}" for n in range(count)]
    for number, folder in enumerate(folders):
        if not (folder / "clinical.json").is_file():  # written last, so it exists only in complete cases
            shutil.rmtree(folder, ignore_errors=True)
            write_bench_case(folder, load_schema(), seed=number, shape_XYZ=size.ct_XYZ)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--folds", type=int, nargs="+", default=[1])
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--out", type=Path, default=CACHE_FOLDER)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    for folds in options.folds:
        print(bundle(SIZES[options.size], folds=folds, cache=options.out))
    for folder in cases(SIZES[options.size], options.cases, cache=options.out):
        print(folder)


if __name__ == "__main__":
    main()
