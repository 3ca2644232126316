"""Facts of a run and of this machine that a bundle's manifest records: no case ids, no paths."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from tmi.export.bundle.model_card import class_counts, releasable_counts
from tmi.toolkit.run_folder import SUMMARY_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json

PACKAGES = ("tmi-clnet", "numpy", "torch", "transformers", "monai", "tokenizers", "safetensors", "onnx", "onnxscript",
            "onnxruntime", "openvino", "onnx-ir", "tensorrt", "tensorrt_rtx", "torch_tensorrt")  # fmt: skip
"""Distributions whose versions the manifest records if they are installed."""


def recorded_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that an export depends on."""
    installed_versions = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    recorded = {name: installed_versions[name] for name in PACKAGES if name in installed_versions}
    return {"python": platform.python_version(), "machine": platform.machine(), **recorded}


def run_record(run: RunFolder, state: dict[str, Any]) -> dict[str, Any]:
    """The part of the run's record that a bundle stores: metrics and fingerprints, no case ids."""
    record: dict[str, Any] = {"class_counts": releasable_counts(class_counts(run))} | {
        key: state[key] for key in ("name", "started_at", "finished_at", "cohort", "versions") if key in state
    }
    rejected = record.get("cohort", {}).get("refused")
    if isinstance(rejected, list):  # case ids in a run; only their number in a bundle
        record["cohort"] = {**record["cohort"], "refused": len(rejected)}
    summary = run.path / SUMMARY_FILE
    return record | {"summary": read_json(summary, kind="run")} if summary.is_file() else record
