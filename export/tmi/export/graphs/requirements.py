"""Which runs become bundles: those of a system with a network. Estimators of scikit-learn do not."""

from __future__ import annotations

from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.registry import NEURAL_MODELS
from tmi.toolkit.run_folder import RunFolder


def require_exportable(run: RunFolder) -> None:
    """Hold that a run has a network, whose graphs a bundle can have.

    Raises:
        UsageError: the run is of an estimator.
    """
    name = run.config.system.name
    if name not in NEURAL_MODELS:
        raise UsageError(
            f"run {run.path} is of the system {name}, which has no network to export",
            fix=f"export a run of {', '.join(NEURAL_MODELS)}; `tmi compare` prints what {name} predicts on the "
            "held-out cases",
        )
