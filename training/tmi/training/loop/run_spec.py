"""What a run trains and on what: the arguments of a cross-validation, and what all its folds share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.training.data.dataset import CohortArrays
from tmi.training.loop.hardware import HardwareConfig

if TYPE_CHECKING:
    from tmi.training.pretrained.initial_weights import InitialWeights  # torch


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run: its data and settings, which a resumed training may not change, and the hardware, which it may."""

    cohort: Cohort
    config: Config
    schema: Schema
    """Clinical schema that the records are rendered by."""
    out: Path
    """Folder of the run."""
    name: str | None = None
    """Name of the run; None: the name of its folder."""
    tokenizer: Tokenizer | None = None
    """Vocabulary of every fold; None trains one on each fold's training texts."""
    vocabulary: Mapping[str, Any] | None = None
    """Record of the given tokenizer (`tmi.training.pretrained.origin`); None: of unknown origin."""
    initial: InitialWeights | None = None
    """Weights that every fold starts from."""
    hardware: HardwareConfig
    """Devices, parallel folds and trackers."""
    cache: PreparedCache | None = None
    """Cache of prepared images; it does not change the result."""


@dataclass(frozen=True, kw_only=True)
class FoldContext:
    """What all folds of a run share. It is sent to the processes of parallel folds and of other GPUs."""

    arrays: CohortArrays
    config: Config
    tokenizer: Tokenizer | None
    """Vocabulary; None trains one on the training texts of the fold."""
    initial: InitialWeights | None = None
    """Weights to start from."""
    hardware: HardwareConfig
