"""What tests of the service over HTTP and gRPC share: a prediction that waits, comparisons, and mutated bytes."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.serving.results import CaseResult, Prediction


class Gate:
    """A prediction that waits until it may run, and counts what reaches it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.may_run, self.reached = predictor, threading.Event(), list[str]()

    def __call__(self, cases: Sequence[Any]) -> Iterator[CaseResult]:
        """Predict."""
        self.reached += [case.case_id for case in cases]
        assert self.may_run.wait(30)
        yield from self.predictor.stream(cases, exact=True)


def wait_until(holds: Callable[[], object]) -> None:
    """Wait until a condition holds, for 20 seconds at most."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def predictions_of(predictor: Predictor, folders: Sequence[Path]) -> dict[str, Prediction]:
    """Prediction of each case folder, by its id."""
    results = {folder.name: predictor.predict(folder)[0] for folder in folders}
    assert all(isinstance(result, Prediction) for result in results.values())
    return results


def facts(result: Prediction) -> dict[str, object]:
    """What a prediction says, without its timing."""
    return {k: v for k, v in result.to_dict().items() if k not in ("seconds", "overlapped")}


def require_equal(tensors: dict[str, object], result: Prediction) -> None:
    """The tensors of a response in JSON are the prediction, to the last bit."""
    assert tensors["probability"] == list(result.probability.values())
    assert tensors["fold_probability"] == [p for fold in result.folds for p in fold.probability.values()]
    assert (tensors["spread"], tensors["decision"]) == ([result.spread], [result.decision])
    (document,) = tensors["document"]
    (entry,) = json.loads(document)["results"]
    assert {k: v for k, v in entry.items() if k not in ("seconds", "overlapped")} == facts(result)
    (issues,) = tensors["issues"]
    assert json.loads(issues) == [issue.to_dict() for issue in result.warnings]


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, removed, repeated or inserted at a few places."""
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(body) + 1)
        end = min(len(body), at + rng.choice((1, 4, 100, 10_000)))
        kind = rng.randrange(4)
        if kind == 0 and at < len(body):
            body[at] = rng.randrange(256)
        elif kind == 1:
            del body[at:end]
        elif kind == 2:
            body[at:at] = body[at:end]
        else:
            body[at:at] = rng.randbytes(rng.choice((1, 3, 50)))
    return bytes(body)
