"""How quick are the engines at each graph, against each other and against eager?

CT encoder, text encoder at the record's real length, fusion; prepared inputs, one case, all engines in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tmi.runtime import Predictor
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import ENGINES, Engine, installed, open_engine
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.schema import stored_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.radiomics.scaler import RadiomicsScaler


@dataclass(frozen=True)
class OpenEngines:
    """Engines on one bundle and the inputs of its graphs for one case."""

    engines: dict[str, Engine]
    default: str
    """What `auto` takes here."""
    inputs: dict[str, dict[str, np.ndarray[Any, Any]]]


@contextmanager
def open_engines(one_fold: Path, case: Path) -> Iterator[OpenEngines]:
    """Every engine that runs here without a GPU, eager among them."""
    bundle = open_bundle(one_fold)
    manifest, config = bundle.manifest, bundle.manifest.parsed_config()
    ready = prepare_case(Case(folder=case, case_id=case.name), config, stored_schema(bundle.folder, kind="bundle"))
    fold = manifest.folds[0]
    tokenizer = Tokenizer.load(bundle.folder / str(manifest.graph(fold.text).tokenizer))
    text = tokenizer.encode([ready.text], max_length=config.clinical.max_length)
    radiomics = RadiomicsScaler.load(bundle.folder / fold.scaler).transform(ready.radiomics_F[None]).values_NF
    inputs = {
        fold.ct: {"ct": ready.ct_1DHW[None]},
        fold.text: {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT},
    }
    with Predictor.open(one_fold) as predictor:
        default = predictor.engine_record.name
    names = [n for n, s in ENGINES.items() if not s.gpu and installed(n) and bundle.has(s.artefact)]
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in names:
            with suppress(UnavailableError):  # what the processor does not have
                engines[name] = stack.enter_context(open_engine(name, bundle))
        features = {graph: next(iter(engines["eager"].run(graph, given).values())) for graph, given in inputs.items()}
        inputs["fusion"] = {
            "ct_features": np.stack([features[fold.ct]] * len(manifest.folds), axis=1),
            "text_features": np.stack([features[fold.text]] * len(manifest.folds), axis=1),
            "radiomics": np.stack([radiomics] * len(manifest.folds), axis=1),
        }
        yield OpenEngines(engines=engines, default=default, inputs=inputs)


@pytest.fixture(scope="module")
def opened(one_fold: Path, case: Path) -> Iterator[OpenEngines]:
    with open_engines(one_fold, case) as engines:
        yield engines


@pytest.mark.parametrize("graph", ["ct-0", "text-0", "fusion"])
def test_forward(record, opened: OpenEngines, graph: str) -> None:
    given = opened.inputs[graph]

    def road(engine: Engine) -> Any:
        return lambda: engine.run(graph, given)

    ratios = record.paired({name: road(engine) for name, engine in opened.engines.items()}, against="eager")
    record.note("default engine / eager", ratios[opened.default].median, "x", engine=opened.default)


def test_text_padded_to_512_against_its_real_length(record, opened: OpenEngines) -> None:
    """What padding costs, on the default engine."""
    name, engine = opened.default, opened.engines[opened.default]
    real = opened.inputs["text-0"]
    tokens = real["input_ids"].shape[1]
    padded = {k: np.pad(v, ((0, 0), (0, 512 - tokens))) for k, v in real.items()}
    roads = {f"{name}, {tokens} tokens": lambda: engine.run("text-0", real),
             f"{name}, padded to 512": lambda: engine.run("text-0", padded),
             "eager, padded to 512": lambda: opened.engines["eager"].run("text-0", padded)}  # fmt: skip
    record.paired(roads, against="eager, padded to 512")
