"""The torch-free runtime: a bundle's engines, the fold ensemble, and the predictor.

The public names are imported when they are first asked for, so that `import tmi.runtime.engines.registry` stays light::

    from tmi.runtime import Predictor

    with Predictor.open("bundle") as predictor:
        answers = predictor.predict(["case_dir"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmi.runtime.prediction import FoldAnswer as FoldAnswer
    from tmi.runtime.prediction import Notice as Notice
    from tmi.runtime.prediction import Prediction as Prediction
    from tmi.runtime.prediction import Refusal as Refusal
    from tmi.runtime.predictor import Predictor as Predictor

_WHERE = {
    "Predictor": "tmi.runtime.predictor",
    "Prediction": "tmi.runtime.prediction",
    "Refusal": "tmi.runtime.prediction",
    "FoldAnswer": "tmi.runtime.prediction",
    "Notice": "tmi.runtime.prediction",
}

__all__ = ["FoldAnswer", "Notice", "Prediction", "Predictor", "Refusal"]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'tmi.runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
