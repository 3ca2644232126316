"""A bundle that the service predicts with, and its exchange for the bundle that has taken its place in the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from tmi.runtime.bundle.accepted import record_accepted
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.bundle.signing import Keys, require_signature, required_keys
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.serving.results import CaseResult
from tmi.toolkit.cases.case import Case

PredictCases = Callable[[Sequence[Case]], Iterator[CaseResult]]
"""Yields the result of each case, in order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """An opened bundle on an engine."""

    bundle: Bundle
    """The bundle."""
    engine: EngineRecord
    """Record of its engine."""
    predict: PredictCases
    """Predicts cases; called in the worker thread of the queue only."""
    close: Callable[[], None] = lambda: None
    """Frees the engine; called when nothing is predicted with it any more."""

    @classmethod
    def of_predictor(cls, predictor: Predictor) -> Self:
        """The model of a predictor, which the service closes."""
        return cls(
            bundle=predictor.bundle,
            engine=predictor.engine_record,
            predict=partial(predictor.stream, exact=True),
            close=predictor.close,
        )


@dataclass(frozen=True, kw_only=True)
class ServedResult:
    """The result of a case, and the model that computed it."""

    result: CaseResult
    """Its result."""
    model: ServedModel
    """The model."""


OpenAgain = Callable[[ServedModel], ServedModel | None]
"""Opens the bundle of the service again, given the running model; None: it is unchanged."""


def open_replacement(
    folder: Path, key: Keys, open_predictor: Callable[[Bundle, str], Predictor], running: ServedModel
) -> ServedModel | None:
    """Open the bundle that is now in the folder that the service was started with, with every check of the start.

    Args:
        folder: the folder as it was given: a link is followed anew.
        key: public keys of which one must have signed the bundle; None: those of `tmi.toml`.
        open_predictor: opens a bundle on the engine of a name, and runs its self-test.
        running: the model that predicts meanwhile.

    Returns:
        The new model; None: the folder holds the bundle that is running.

    Raises:
        TmiError: the bundle or its engine fails a check; `open_trusted_bundle` and `Predictor.open` name them.
    """
    keys = required_keys(key)
    bundle = open_bundle(folder)
    is_signed = require_signature(bundle, keys)
    if bundle.digest == running.bundle.digest:
        return None
    predictor = open_predictor(bundle, running.engine.name)
    if is_signed:  # after the self-test: a bundle that fails it must not bar the way back to the running one
        record_accepted(bundle)
    return ServedModel.of_predictor(predictor)
