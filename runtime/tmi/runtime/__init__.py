"""Predictions with an exported bundle, on a machine without torch.

    from tmi.runtime import Predictor, RejectedCase

    with Predictor.open("bundle") as predictor:
        for result in predictor.predict(["case_dir"]):
            if isinstance(result, RejectedCase):
                raise ValueError(f"{result.case_id}: {result.what} [{result.code}]; {result.fix}")
            decisions[result.case_id] = result.decision, result.probability

`explain` explains the prediction of a case; it needs torch. `CaseArrays` is a case in memory, without a folder.
`__version__` is the version of the installed package tmi-clnet. The public names are imported on first access, so that
importing one module of a room stays light.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tmi-clnet")
    return _load(name)
