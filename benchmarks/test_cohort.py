"""Does a cohort keep the CT encoder busy?

The benchmark compares the prediction of eight cases in one run with eight forward passes of the CT encoder. At a ratio
of 1, reading, preprocessing, text and fusion are completely overlapped with the CT encoder.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from tmi.runtime import Prediction, Predictor
from tmi.runtime.engines.registry import open_engine
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.schema import stored_schema
from tmi.toolkit.preprocessing.pipeline import prepare_case


def test_cohort_throughput(record, cohort: list[Path], default_predictor: Predictor) -> None:
    bundle = default_predictor.bundle
    schema, config = stored_schema(bundle.folder, kind="bundle"), bundle.manifest.config
    ct_BCDHW = prepare_case(Case(folder=cohort[0], case_id="first"), config, schema).ct_1DHW[None]

    def predict() -> None:
        predictions = default_predictor.predict(cohort)
        assert all(isinstance(p, Prediction) for p in predictions), predictions

    with open_engine(default_predictor.engine_record.name, bundle) as engine:
        graphs = dict.fromkeys(fold.ct for fold in bundle.manifest.folds)

        def forward() -> None:
            for _ in cohort:
                for graph in graphs:
                    engine.run(graph, {"ct": ct_BCDHW})

        record.paired({"cohort": predict, "CT forward alone": forward}, against="CT forward alone", repeats=3)
    rounds = zip(record.metrics["CT forward alone s"]["rounds"], record.metrics["cohort s"]["rounds"], strict=True)
    record.note("throughput x CT forward", statistics.median(alone / cohort for alone, cohort in rounds), "x")
