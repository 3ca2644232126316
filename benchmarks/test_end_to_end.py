"""How much sooner does a user have the answer than with MONAI transforms and the eager network?

From the case's files (`.nii.gz`, radiomics.csv, clinical.json) to the probability, warm, one case, in one process. What
is not the CT encoder's forward pass is told apart, and whether the stages add up to the wall time.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter

from tmi.runtime import Prediction, Predictor
from tmi.runtime.engines.registry import engine_spec


def test_end_to_end_against_monai(record, one_fold: Path, case: Path, default_predictor: Predictor) -> None:
    from monai_pipeline import MonaiPipeline  # slow to import, and not for the stages

    pipeline = MonaiPipeline(one_fold)
    answers: list[Prediction] = []
    theirs: list[dict[str, float]] = []
    stages: list[dict[str, float]] = []

    def ours() -> None:
        (answer,) = default_predictor.predict(case)
        assert isinstance(answer, Prediction), answer
        answers.append(answer)

    def monai() -> None:
        theirs.append(pipeline.predict(case))
        stages.append(pipeline.seconds)

    record.paired({"tmi predict": ours, "MONAI pipeline": monai}, against="MONAI pipeline")
    pipeline.close()
    name = default_predictor.engine_record.name
    apart = max(abs(answers[-1].probability[k] - theirs[-1][k]) for k in theirs[-1])
    record.note("|p - MONAI pipeline|", apart, "", allowed=engine_spec(name).max_abs_err + 1e-4)
    assert apart <= engine_spec(name).max_abs_err + 1e-4, "the two do not answer alike: nothing is compared"
    mine = _median(answers[1:])
    record.note("stages of tmi predict", sum(mine.values()), "s", stages=mine)
    theirs_s = {k: statistics.median(s[k] for s in stages[1:]) for k in stages[0]}
    record.note("stages of the MONAI pipeline", sum(theirs_s.values()), "s", stages=theirs_s)


def test_stages_add_up(record, case: Path, default_predictor: Predictor) -> None:
    """The waterfall against a clock outside; what is left unclaimed is `other`."""
    walls: list[float] = []
    answers: list[Prediction] = []

    def once() -> None:
        start = perf_counter()
        (answer,) = default_predictor.predict(case)
        walls.append(perf_counter() - start)
        assert isinstance(answer, Prediction), answer
        answers.append(answer)

    record.paired({"tmi predict": once}, against="tmi predict")
    walls, answers = walls[1:], answers[1:]
    apart = [abs(sum(v for k, v in a.seconds.items() if k != "total") / wall - 1)
             for a, wall in zip(answers, walls, strict=True)]  # fmt: skip
    # a gap that the code leaves is in every round; one that a busy machine tears between two threads is not
    record.note("|sum of stages / wall - 1|", min(apart), "", rounds=apart)
    record.note(
        "unclaimed / wall", statistics.median(a.seconds["other"] / w for a, w in zip(answers, walls, strict=True))
    )
    outside = [1 - a.seconds["ct"] / wall for a, wall in zip(answers, walls, strict=True)]
    record.note("part that is not the CT forward", statistics.median(outside))


def _median(answers: list[Prediction]) -> dict[str, float]:
    return {k: statistics.median(a.seconds[k] for a in answers) for k in answers[0].seconds if k != "total"}
