"""How much faster is a prediction than with MONAI transforms and the eager network?

The benchmark measures one case from its files (`.nii.gz`, radiomics.csv, clinical.json) to the probability, warm, in
one process. It also records the share of time outside of the CT encoder's forward pass, and whether the stages add up
to the wall time.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter

from tmi.runtime import Prediction, Predictor
from tmi.runtime.engines.registry import engine_spec


def test_end_to_end_against_monai(record, one_fold: Path, case: Path, default_predictor: Predictor) -> None:
    from monai_pipeline import MonaiPipeline  # slow to import, and not needed for the stages

    pipeline = MonaiPipeline(one_fold)
    predictions: list[Prediction] = []
    baseline: list[dict[str, float]] = []
    stages: list[dict[str, float]] = []

    def predict() -> None:
        (prediction,) = default_predictor.predict(case)
        assert isinstance(prediction, Prediction), prediction
        predictions.append(prediction)

    def predict_with_monai() -> None:
        baseline.append(pipeline.predict(case))
        stages.append(pipeline.seconds)

    record.paired({"tmi predict": predict, "MONAI pipeline": predict_with_monai}, against="MONAI pipeline")
    pipeline.close()
    name = default_predictor.engine_record.name
    difference = max(abs(predictions[-1].probability[k] - baseline[-1][k]) for k in baseline[-1])
    record.note("|p - MONAI pipeline|", difference, "", allowed=engine_spec(name).max_abs_err + 1e-4)
    assert difference <= engine_spec(name).max_abs_err + 1e-4, "the pipelines differ, so their times cannot be compared"
    stages_s = _median(predictions[1:])
    record.note("stages of tmi predict", sum(stages_s.values()), "s", stages=stages_s)
    baseline_s = {k: statistics.median(s[k] for s in stages[1:]) for k in stages[0]}
    record.note("stages of the MONAI pipeline", sum(baseline_s.values()), "s", stages=baseline_s)


def test_stages_add_up(record, case: Path, default_predictor: Predictor) -> None:
    """Compare the sum of the stages with the wall time; `other` is the time of no stage."""
    walls: list[float] = []
    predictions: list[Prediction] = []

    def predict() -> None:
        start = perf_counter()
        (prediction,) = default_predictor.predict(case)
        walls.append(perf_counter() - start)
        assert isinstance(prediction, Prediction), prediction
        predictions.append(prediction)

    record.paired({"tmi predict": predict}, against="tmi predict")
    walls, predictions = walls[1:], predictions[1:]
    gaps = [abs(sum(v for k, v in p.seconds.items() if k != "total") / wall - 1)
            for p, wall in zip(predictions, walls, strict=True)]  # fmt: skip
    # a gap of the code is in every round, one from load on the machine is not: hence the minimum
    record.note("|sum of stages / wall - 1|", min(gaps), "", rounds=gaps)
    record.note(
        "unclaimed / wall", statistics.median(p.seconds["other"] / w for p, w in zip(predictions, walls, strict=True))
    )
    outside = [1 - p.seconds["ct"] / wall for p, wall in zip(predictions, walls, strict=True)]
    record.note("part that is not the CT forward", statistics.median(outside))


def _median(predictions: list[Prediction]) -> dict[str, float]:
    return {k: statistics.median(p.seconds[k] for p in predictions) for k in predictions[0].seconds if k != "total"}
