"""Work of an explanation: every model is loaded once, every CT encoded once, whatever the class that is explained."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from factories.cases import write_case
from tmi.runtime import Predictor
from tmi.runtime.explanation.explainer import Explainer, ct_map, encode_text, explanation_threads
from tmi.runtime.explanation.inputs import fold_inputs
from tmi.runtime.explanation.model_source import keep_folds, open_bundle_models, open_run_models
from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.errors import UsageError
from tmi.toolkit.preprocessing.pipeline import prepare_case


@pytest.fixture(scope="module")
def source(nano_run):
    return open_run_models(nano_run)


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    folder = tmp_path_factory.mktemp("cases")
    return [Case(folder=write_case(folder / name), case_id=name) for name in ("P1", "P2")]


@pytest.fixture
def loads(source):
    """Number of times that each fold was loaded, and the source that counts them, by the memory that folds may take."""

    def counted(kept_bytes: int):
        numbers: Counter[int] = Counter()

        def load(fold):
            numbers[fold] += 1
            return source.load(fold)

        return replace(source, load=keep_folds(load, kept_bytes=kept_bytes)), numbers

    return counted


def explained(source, case, **options):
    prepared = prepare_case(case, source.config, source.schema)
    explainer = Explainer(source, source.folds, **options)
    return explainer, prepared, explainer.explain(case, prepared)


def test_second_case_loads_no_model(loads, cases):
    """The models of a small preset are loaded once for all cases."""
    source, numbers = loads(2**30)
    for case in cases:
        explained(source, case)
    assert numbers == {0: 1, 1: 1}


def test_large_models_are_loaded_once_for_a_case(loads, cases):
    """A model that does not stay in memory is loaded once for a case, and once more for curves and sanity check."""
    source, numbers = loads(0)
    explainer, prepared, explanation = explained(source, cases[0])
    assert numbers == {0: 1, 1: 1}
    explainer.curves(explanation, prepared, steps=2)
    explainer.randomization_test(explanation, prepared)
    assert numbers == {0: 2, 1: 1}


def test_kept_folds_fit_into_the_memory(source):
    """As many folds stay in memory as fit, and the last one."""
    size = sum(tensor.nbytes for tensor in source.load(0).network.state_dict().values())
    numbers: Counter[int] = Counter()

    def load(fold):
        numbers[fold] += 1
        return source.load(fold % 2)

    folds = keep_folds(load, kept_bytes=2 * size)
    for fold in (0, 1, 2, 3, 3, 0, 1, 2):
        folds(fold)
    assert numbers == {0: 1, 1: 1, 2: 2, 3: 1}


@pytest.mark.parametrize(
    ("target", "threshold", "expected"), [(None, 0.0, "bad"), (None, 1.1, "good"), ("good", 0.0, "good")]
)
def test_ct_is_encoded_once_and_the_maps_are_those_of_the_class(source, cases, target, threshold, expected):
    """One run of the CT encoder gives prediction and map of a fold, whichever class all folds decide for."""
    runs = Counter()
    handles = [
        source.load(fold).fused.ct_encoder.register_forward_hook(lambda *_, fold=fold: runs.update([fold]))
        for fold in source.folds
    ]
    try:
        _, prepared, explanation = explained(replace(source, threshold=threshold), cases[0], target=target)
    finally:
        for handle in handles:
            handle.remove()
    assert runs == {0: 1, 1: 1}
    assert explanation.target == expected
    index = source.classes.index(explanation.target)
    for fold in explanation.folds:
        network = source.load(fold.fold).fused
        inputs = fold_inputs(prepared, source.load(fold.fold), source.config)
        map_DHW = ct_map(network, inputs, encode_text(network, inputs), index, source.config.ct.shape_DHW)
        np.testing.assert_array_equal(fold.map_DHW, map_DHW)
        with torch.no_grad():
            logits = network(inputs.ct, inputs.input_ids, inputs.attention_mask, inputs.radiomics).logits_BK[0]
        probability = logits.double().softmax(dim=0)
        assert fold.probability == pytest.approx(dict(zip(source.classes, probability.tolist(), strict=True)), abs=1e-6)


def test_small_ct_is_explained_on_one_thread():
    """Without a given number a small CT input takes one thread, a large one torch's number."""
    assert explanation_threads(tiny(), None) == 1
    assert explanation_threads(tiny(), 2) == 2
    assert explanation_threads(paper(), None) is None


@pytest.mark.parametrize("half_a_record", [False, True])
def test_decision_is_that_of_the_prediction(trusted_bundle, synthetic_cohort, tmp_path, half_a_record):
    """Decision, reasons, trust and warnings of an explanation are those of `tmi predict` for the same case."""
    folder = shutil.copytree(sorted(p for p in synthetic_cohort.iterdir() if p.is_dir())[0], tmp_path / "P1")
    if half_a_record:
        record = json.loads((folder / "clinical.json").read_text())
        record["values"] = {name: v for n, (name, v) in enumerate(sorted(record["values"].items())) if n % 2 == 0}
        (folder / "clinical.json").write_text(json.dumps(record))
    with Predictor.open(trusted_bundle, engine="eager", threads=1) as predictor:
        (predicted,) = predictor.predict(folder)
    source = open_bundle_models(trusted_bundle, threads=1)
    *_, explanation = explained(source, Case(folder=folder, case_id="P1"))
    assert predicted.decision == ("not-trusted" if half_a_record else predicted.decision)
    assert (explanation.decision, explanation.reasons) == (predicted.decision, predicted.reasons)
    assert explanation.trust == predicted.trust
    assert explanation.notices == predicted.warnings
    assert explanation.target in source.classes, "the map explains a class, also without a decision"


def test_one_fold_is_assessed_by_its_own_statistics(trusted_bundle, synthetic_cohort):
    """With `--fold` the held-out cases are those of that fold; a trust level replaces the manifest's."""
    folder = sorted(p for p in synthetic_cohort.iterdir() if p.is_dir())[0]
    source = open_bundle_models(trusted_bundle, threads=1)
    case = Case(folder=folder, case_id=folder.name)
    prepared = prepare_case(case, source.config, source.schema)
    trust = Explainer(source, (1,), trust_level=0.4).explain(case, prepared).trust
    assert (trust.cases, trust.level) == (30, 0.4)


def test_trust_level_without_statistics_is_rejected(source):
    """A level has no effect on models of earlier versions, so it is an error."""
    with pytest.raises(UsageError, match="the run has no statistics of its training cases"):
        Explainer(source, source.folds, trust_level=0.05)
