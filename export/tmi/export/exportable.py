"""Which runs become bundles: those of TMI-CLNet with all three modalities."""

from __future__ import annotations

from tmi.toolkit.config import MODALITIES
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder


def require_exportable(run: RunFolder) -> None:
    """Hold that a run is of the network whose graph a bundle has.

    Raises:
        UsageError: the run is of a system that TMI-CLNet is compared with, or of an ablation over modalities.
    """
    name, seen = run.config.system.name, run.config.network.modalities
    fix = "export a run of `tmi train --model tmi-clnet` with all three modalities"
    if name != "tmi-clnet":
        raise UsageError(f"run {run.path} is of the system {name}, and bundles hold TMI-CLNet only", fix=fix)
    if len(seen) < len(MODALITIES):
        raise UsageError(f"run {run.path} sees {' and '.join(seen)} only, and bundles take all three", fix=fix)
