"""Facts of a run and of this machine that a bundle's manifest records: no case ids, no paths."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from tmi.export.bundle.model_card import class_counts, releasable_counts
from tmi.runtime.bundle.earlier_schemas import known_entries, with_current_names
from tmi.runtime.bundle.manifest_records import RunRecord
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.run_folder import SUMMARY_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.serialization import from_json

PACKAGES = ("tmi-clnet", "numpy", "torch", "transformers", "monai", "tokenizers", "safetensors", "onnx", "onnxscript",
            "onnxruntime", "openvino", "onnx-ir", "tensorrt", "tensorrt_rtx", "torch_tensorrt")  # fmt: skip
"""Distributions whose versions the manifest records if they are installed."""


def recorded_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that an export depends on."""
    installed_versions = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    recorded = {name: installed_versions[name] for name in PACKAGES if name in installed_versions}
    return {"python": platform.python_version(), "machine": platform.machine(), **recorded}


def run_record(run: RunFolder, state: dict[str, Any]) -> RunRecord:
    """The part of the run's record that a bundle stores: metrics and fingerprints, no case ids.

    Raises:
        DamagedError: an entry of the run's record has the wrong type.
    """
    stated: dict[str, Any] = {
        key: state[key] for key in ("started_at", "finished_at", "cohort", "versions") if key in state
    }
    record: dict[str, Any] = {
        **stated, "name": state.get("name", run.path.name), "class_counts": releasable_counts(class_counts(run))
    }  # fmt: skip
    rejected = record.get("cohort", {}).get("refused")
    if isinstance(rejected, list):  # case ids in a run; only their number in a bundle
        record["cohort"] = {**record["cohort"], "refused": len(rejected)}
    summary = run.path / SUMMARY_FILE
    if summary.is_file():
        record["summary"] = read_json(summary, kind="run")
    try:
        return from_json(RunRecord, known_entries(RunRecord, with_current_names(record)), where="run")
    except UsageError as error:
        raise DamagedError(error.what, fix="train the run again") from error
