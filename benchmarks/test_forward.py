"""How fast are the engines at each graph, compared with each other and with eager?

The benchmark runs the CT encoder, the text encoder at the real length of the record, and the fusion on preprocessed
inputs of one case, with all engines in one process.
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
    """Open engines of one bundle, and the inputs of its graphs for one case."""

    engines: dict[str, Engine]
    default: str
    """Engine that `auto` chooses on this machine."""
    inputs: dict[str, dict[str, np.ndarray[Any, Any]]]


@contextmanager
def open_engines(one_fold: Path, case: Path) -> Iterator[OpenEngines]:
    """Open every installed engine that needs no GPU, eager included."""
    bundle = open_bundle(one_fold)
    manifest, config = bundle.manifest, bundle.manifest.config
    prepared = prepare_case(Case(folder=case, case_id=case.name), config, stored_schema(bundle.folder, kind="bundle"))
    fold = manifest.folds[0]
    tokenizer = Tokenizer.load(bundle.folder / str(manifest.graph(fold.text).tokenizer))
    text = tokenizer.encode([prepared.text], max_length=config.clinical.max_length)
    radiomics = RadiomicsScaler.load(bundle.folder / fold.scaler).transform(prepared.radiomics_F[None]).values_NF
    inputs = {
        fold.ct: {"ct": prepared.ct_1DHW[None]},
        fold.text: {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT},
    }
    with Predictor.open(one_fold) as predictor:
        default = predictor.engine_record.name
    names = [n for n, s in ENGINES.items() if not s.gpu and installed(n) and bundle.has(s.artefact)]
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in names:
            with suppress(UnavailableError):  # the processor does not support it
                engines[name] = stack.enter_context(open_engine(name, bundle))
        features = {graph: next(iter(engines["eager"].run(graph, arrays).values())) for graph, arrays in inputs.items()}
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
    inputs = opened.inputs[graph]

    def forward(engine: Engine) -> Any:
        return lambda: engine.run(graph, inputs)

    ratios = record.paired({name: forward(engine) for name, engine in opened.engines.items()}, against="eager")
    record.note("default engine / eager", ratios[opened.default].median, "x", engine=opened.default)


def test_text_padded_to_512_against_its_real_length(record, opened: OpenEngines) -> None:
    """Cost of padding the text to 512 tokens with the default engine."""
    name, engine = opened.default, opened.engines[opened.default]
    real = opened.inputs["text-0"]
    tokens = real["input_ids"].shape[1]
    padded = {k: np.pad(v, ((0, 0), (0, 512 - tokens))) for k, v in real.items()}
    pipelines = {f"{name}, {tokens} tokens": lambda: engine.run("text-0", real),
                 f"{name}, padded to 512": lambda: engine.run("text-0", padded),
                 "eager, padded to 512": lambda: opened.engines["eager"].run("text-0", padded)}  # fmt: skip
    record.paired(pipelines, against="eager, padded to 512")
