"""Does the CT encoder gain from batches?

Seconds a case of the default engine at each batch size, against one case alone. On a CPU little is to be had: one
volume fills the cores already.
"""

from __future__ import annotations

import numpy as np

from bench_inputs import Size
from tmi.runtime import Predictor
from tmi.runtime.engines.registry import open_engine


def test_batch_scaling(record, default_predictor: Predictor, size: Size) -> None:
    bundle, name = default_predictor.bundle, default_predictor.engine_record.name
    shape = bundle.manifest.parsed_config().ct.shape_DHW
    noise = np.random.default_rng(0).random((max(size.batches), 1, *shape), dtype=np.float32)
    with open_engine(name, bundle) as engine:
        roads = {f"batch {n}": lambda n=n: engine.run("ct-0", {"ct": noise[:n]}) for n in size.batches}
        record.paired(roads, against="batch 1", repeats=max(3, record.repeats // 2))
    for n in size.batches[1:]:
        whole = record.metrics[f"batch {n} / batch 1"]["value"]
        record.note(f"batch {n}: seconds a case / batch 1", whole / n, "x")
