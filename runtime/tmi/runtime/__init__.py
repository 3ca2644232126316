"""The torch-free runtime: bundles, engines, the fold ensemble and the predictor.

Public names are imported on first access, so that `import tmi.runtime.engines.registry` stays light::

    from tmi.runtime import Predictor

    with Predictor.open("bundle") as predictor:
        results = predictor.predict(["case_dir"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmi.runtime.serving.predictor import Predictor as Predictor
    from tmi.runtime.serving.results import FoldPrediction as FoldPrediction
    from tmi.runtime.serving.results import Notice as Notice
    from tmi.runtime.serving.results import Prediction as Prediction
    from tmi.runtime.serving.results import RejectedCase as RejectedCase

_MODULES = {
    "Predictor": "tmi.runtime.serving.predictor",
    "Prediction": "tmi.runtime.serving.results",
    "RejectedCase": "tmi.runtime.serving.results",
    "FoldPrediction": "tmi.runtime.serving.results",
    "Notice": "tmi.runtime.serving.results",
}

__all__ = ["FoldPrediction", "Notice", "Prediction", "Predictor", "RejectedCase"]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'tmi.runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
