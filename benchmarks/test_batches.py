"""Does the CT encoder get faster with batches?

The benchmark compares the seconds per case of the default engine at each batch size with a batch of one. On a CPU the
gain is small, because one volume keeps all cores busy.
"""

from __future__ import annotations

import numpy as np

from bench_inputs import Size
from tmi.runtime import Predictor
from tmi.runtime.engines.registry import open_engine


def test_batch_scaling(record, default_predictor: Predictor, size: Size) -> None:
    bundle, name = default_predictor.bundle, default_predictor.engine_record.name
    shape = bundle.manifest.config.ct.shape_DHW
    noise = np.random.default_rng(0).random((max(size.batches), 1, *shape), dtype=np.float32)
    with open_engine(name, bundle) as engine:
        batches = {f"batch {n}": lambda n=n: engine.run("ct-0", {"ct": noise[:n]}) for n in size.batches}
        record.paired(batches, against="batch 1", repeats=max(3, record.repeats // 2))
    for n in size.batches[1:]:
        ratio = record.metrics[f"batch {n} / batch 1"]["value"]
        record.note(f"batch {n}: seconds a case / batch 1", ratio / n, "x")
