"""Switch off the usage reports of third-party packages: nothing that `tmi` runs contacts another host.

ONNX Runtime reports each session and stores a device id, OpenVINO reports every import of the package, MLflow (which
MONAI imports) stores an installation id, and the Hugging Face packages report what they load. Each room that imports
one of them calls `disable_telemetry` in its `__init__.py`, before any of its modules is imported. Processes started
later inherit the environment variables; workers import the rooms again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

OPT_OUT_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "ORT_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "true",
    }
)
"""Environment variables that the packages read when they are imported. The last one is read by several of them."""
OPENVINO_REPORTER = "openvino_telemetry"
"""Package that OpenVINO imports to send reports. It has no variable to switch it off."""


def disable_telemetry() -> None:
    """Switch off the reports, whatever the environment sets. May be called any number of times.

    It works best before the packages are imported. If one of them was imported earlier, its later reports are stopped,
    but not what it sent on its import.
    """
    os.environ.update(OPT_OUT_VARIABLES)
    reporter: Any = sys.modules.get(OPENVINO_REPORTER)
    if reporter is None:
        # An import of it raises ImportError from now on, and OpenVINO then uses the stub that it brings along.
        sys.modules[OPENVINO_REPORTER] = None  # type: ignore[assignment]
    else:
        for method in ("send_event", "send_error", "send_stack_trace", "start_session", "end_session"):
            setattr(reporter.Telemetry, method, _send_nothing)
    onnxruntime: Any = sys.modules.get("onnxruntime")
    if onnxruntime is not None and hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()


def _send_nothing(*arguments: object, **options: object) -> None:
    """Replace a method that sends a report."""
