"""Integrated gradients: completeness, sign, and sums by feature, group and field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from factories.cases import write_case
from factories.nano import nano
from factories.random_run import write_random_run
from tmi.runtime.explanation.inputs import EncodedCase, fold_inputs, log_odds
from tmi.runtime.explanation.integrated_gradients import (
    ABSOLUTE_TOLERANCE,
    MAX_TEXT_BATCH_SIZE,
    TOLERANCE,
    gauss_legendre,
    integrated_gradients,
    radiomics_attribution,
    sum_by_field,
    text_attribution,
    text_batch_size,
)
from tmi.runtime.explanation.model_source import open_run_models
from tmi.runtime.explanation.results import (
    feature_class,
    image_type,
    mean_fields,
    strongest_fields,
    sum_by_group,
    top_features,
)
from tmi.runtime.explanation.tcaf_attention import ring_attention
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import field_spans, render, sentences
from tmi.toolkit.models.tmi_clnet.tcaf import MODALITIES
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, FEATURE_NAMES, IMAGE_TYPES


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = replace(nano(), clinical=replace(nano().clinical, rendering="values"))
    return open_run_models(write_random_run(tmp_path_factory.mktemp("nano") / "run", config, seed=1))


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return Case(folder=write_case(tmp_path_factory.mktemp("case") / "P1"), case_id="P1")


@pytest.fixture(scope="module")
def encoded_fold(source, case):
    """Fold model, inputs, encoder outputs and preprocessed case. The logits are scaled up, so that errors are not
    negligible.
    """
    prepared = prepare_case(case, source.config, source.schema)
    model = source.load(0)
    model.fused.fusion.head.densenet.class_layers.out.weight.mul_(1000.0)
    inputs = fold_inputs(prepared, model, source.config)
    with torch.no_grad():
        encoded = EncodedCase(
            ct_features=model.fused.encode_ct(inputs.ct),
            text_features=model.fused.encode_text(inputs.input_ids, inputs.attention_mask),
        )
    return model, inputs, encoded, prepared


def log_odds_with(model, inputs, **changes) -> float:
    """Log-odds of bad with some inputs replaced."""
    tensors = {name: changes.get(name, getattr(inputs, name)) for name in vars(inputs)}
    with torch.no_grad():
        logits = model.network(
            tensors["ct"], tensors["input_ids"], tensors["attention_mask"], tensors["radiomics"]
        ).logits_BK
    return float(log_odds(logits, 1))


def test_radiomics_attribution_is_complete(encoded_fold):
    """Attributions of the features sum to the change of the log-odds from the baseline."""
    model, inputs, encoded, _ = encoded_fold
    attribution = radiomics_attribution(model.network, inputs, encoded, 1)
    change = log_odds_with(model, inputs) - log_odds_with(model, inputs, radiomics=torch.zeros_like(inputs.radiomics))
    assert abs(change) > 0.5
    assert attribution.output - attribution.baseline == pytest.approx(change, abs=1e-3)
    assert abs(attribution.values_N.sum() - change) <= max(1.1 * TOLERANCE * abs(change), ABSOLUTE_TOLERANCE)
    assert attribution.error == pytest.approx(attribution.values_N.sum() - change, abs=1e-3)


def test_feature_at_baseline_has_zero_attribution(encoded_fold):
    """A feature at its baseline value has attribution 0."""
    model, inputs, encoded, _ = encoded_fold
    attribution = radiomics_attribution(model.network, inputs, encoded, 1)
    at_baseline = inputs.radiomics[0].numpy() == 0
    assert np.all(attribution.values_N[at_baseline] == 0)


def test_text_attribution_is_complete(encoded_fold, source, case):
    """Attributions of the fields sum to the change of the log-odds from an empty text."""
    model, inputs, encoded, prepared = encoded_fold
    offsets = model.tokenizer.offsets(prepared.text, max_length=source.config.clinical.max_length)
    attribution = text_attribution(model.network, inputs, encoded, 1, offsets)
    empty = inputs.input_ids.clone()
    empty[0, 1:-1] = 0
    change = log_odds_with(model, inputs) - log_odds_with(model, inputs, input_ids=empty)
    assert abs(change) > 0.5
    spans = field_spans(sentences(read_clinical(case, source.schema), source.schema, "values"))
    fields = sum_by_field(attribution.values_N, offsets, spans)
    assert sum(v for v in fields.values() if v is not None) == pytest.approx(attribution.values_N.sum(), abs=1e-9)
    assert abs(attribution.values_N.sum() - change) <= max(1.1 * TOLERANCE * abs(change), ABSOLUTE_TOLERANCE)
    assert attribution.values_N[[0, -1]].tolist() == [0, 0]  # [CLS] and [SEP] are equal in the baseline


def test_attributions_equal_captums(encoded_fold, source):
    """Attributions of features and tokens equal captum's with the same number of points."""
    from captum.attr import IntegratedGradients, LayerIntegratedGradients

    model, inputs, encoded, prepared = encoded_fold
    network = model.network

    def f_radiomics(x):
        ct, text = (v.expand(len(x), -1) for v in (encoded.ct_features, encoded.text_features))
        return log_odds(network.fuse(ct, text, x).logits_BK, 1)

    def f_text(ids):
        text = network.encode_text(ids, inputs.attention_mask.expand(len(ids), -1))
        ct, radiomics = (v.expand(len(ids), -1) for v in (encoded.ct_features, inputs.radiomics))
        return log_odds(network.fuse(ct, text, radiomics).logits_BK, 1)

    offsets = model.tokenizer.offsets(prepared.text, max_length=source.config.clinical.max_length)
    radiomics = radiomics_attribution(network, inputs, encoded, 1)
    text = text_attribution(network, inputs, encoded, 1, offsets)
    empty = inputs.input_ids.clone()
    empty[0, 1:-1] = 0
    words = network.text_encoder.bert.embeddings.word_embeddings
    by_captum = [
        IntegratedGradients(f_radiomics).attribute(inputs.radiomics, n_steps=radiomics.steps)[0],
        LayerIntegratedGradients(f_text, words)
        .attribute(inputs.input_ids, baselines=empty, n_steps=text.steps)[0]
        .sum(dim=-1),
    ]
    for own, expected in zip((radiomics.values_N, text.values_N), by_captum, strict=True):
        reference = expected.detach().numpy()
        np.testing.assert_allclose(own, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_integral_of_a_polynomial_is_exact(batch_size):
    """The sum is exact for a polynomial, whatever the number of points in one run."""
    start, end = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64), torch.tensor([[2.0, 3.0, 2.0]]).double()
    rows = []

    def f(x):
        rows.append(len(x))
        return (x**3).sum(dim=1)

    values = integrated_gradients(f, start, end, points=16, batch_size=batch_size)
    torch.testing.assert_close(values, (end**3 - start**3)[0], rtol=1e-12, atol=1e-12)
    assert sum(rows) == 16
    assert max(rows) == batch_size


def test_points_are_computed_once():
    """The points of a sum, whose computation grows with the square of their number, are computed once a process."""
    assert gauss_legendre(64) is gauss_legendre(64)
    points, weights = np.polynomial.legendre.leggauss(64)
    np.testing.assert_allclose(gauss_legendre(64)[0], 0.5 * (1 + points), rtol=1e-12)
    np.testing.assert_allclose(gauss_legendre(64)[1], 0.5 * weights, rtol=1e-9)


def test_runs_of_bert_fit_into_memory():
    """BERT-base with 512 tokens takes 4 points in a run, a small encoder the most that is useful."""
    from types import SimpleNamespace

    def network(hidden, layers):
        config = SimpleNamespace(hidden_size=hidden, num_hidden_layers=layers)
        return SimpleNamespace(text_encoder=SimpleNamespace(bert=SimpleNamespace(config=config)))

    assert text_batch_size(network(768, 12), 512) == 4
    assert text_batch_size(network(64, 2), 512) == MAX_TEXT_BATCH_SIZE
    assert text_batch_size(network(4096, 48), 512) == 1


def test_tokens_are_assigned_to_their_sentences(source, case):
    """Every token is counted for the sentence that contains it."""
    record = read_clinical(case, source.schema)
    rendered = sentences(record, source.schema, "values")
    text = render(record, source.schema, "values")
    for (name, start, end), (same, sentence) in zip(field_spans(rendered), rendered, strict=True):
        assert (name, text[start:end]) == (same, sentence)
    tokenizer = source.load(0).tokenizer
    offsets = tokenizer.offsets(text, max_length=512)
    assert len(offsets) == tokenizer.encode([text], max_length=512).input_ids_BT.shape[1]
    ones = np.ones(len(offsets))
    counts = sum_by_field(ones, offsets, field_spans(rendered))
    for name, start, end in field_spans(rendered):
        assert counts[name] == sum(start <= a and b <= end for a, b in offsets if b > a)


def test_truncated_field_has_no_attribution(source, case):
    """A field whose sentence was cut off has attribution None."""
    record = read_clinical(case, source.schema)
    rendered = sentences(record, source.schema, "values")
    text = render(record, source.schema, "values")
    tokenizer = source.load(0).tokenizer
    offsets = tokenizer.offsets(text, max_length=12)
    assert len(offsets) == 12
    assert offsets[-1] == (0, 0)
    counts = sum_by_field(np.ones(12), offsets, field_spans(rendered))
    assert counts[rendered[0][0]] is not None
    assert counts[rendered[-1][0]] is None


def test_report_is_a_separate_span(source, case, tmp_path):
    """A free-text report is a separate span without a field name."""
    record = read_clinical(case, source.schema)
    with_report = type(record)(**{**vars(record), "report": " Coarse liver. "})
    pieces = sentences(with_report, source.schema, "values")
    assert pieces[-1] == (None, "Coarse liver.")
    assert render(with_report, source.schema, "values").endswith(". Coarse liver.")


def test_groups_add_up_to_the_whole_and_name_every_class_and_image_type():
    values = np.random.default_rng(0).normal(size=len(FEATURE_NAMES))
    for name_of, names in ((feature_class, {"shape", *CLASS_FEATURES}), (image_type, set(IMAGE_TYPES))):
        groups = sum_by_group(values, name_of)
        assert set(groups) == names
        assert sum(g["sum"] for g in groups.values()) == pytest.approx(values.sum())
        magnitudes = [g["magnitude"] for g in groups.values()]
        assert magnitudes == sorted(magnitudes, reverse=True)


def test_top_features_have_the_largest_magnitudes():
    """The top features are sorted by magnitude, whatever their sign, without zeros."""
    values = np.zeros(len(FEATURE_NAMES))
    values[[3, 700, 1780]] = [0.5, -2.0, 1.0]
    assert top_features(values, 20) == [(FEATURE_NAMES[700], -2.0), (FEATURE_NAMES[1780], 1.0), (FEATURE_NAMES[3], 0.5)]


def test_fields_are_averaged_over_folds_that_include_them():
    """A field's mean is over the folds whose text includes it."""
    from types import SimpleNamespace

    folds = (SimpleNamespace(fields={"a": 1.0, "b": None}), SimpleNamespace(fields={"a": 3.0, "b": -4.0, "c": None}))
    assert mean_fields(folds) == {"a": 2.0, "b": -4.0, "c": None}
    assert strongest_fields(mean_fields(folds)) == [("b", -4.0), ("a", 2.0)]


def test_ring_attention_is_within_its_bounds(encoded_fold):
    """Effective tokens and shares are within their bounds; uniform attention has all tokens."""
    model, inputs, encoded, _ = encoded_fold
    with torch.no_grad():
        fused = model.network.fuse(encoded.ct_features, encoded.text_features, inputs.radiomics)
    features = (fused.clinical_BC, fused.radiomics_BC, fused.image_BC)
    tcaf = model.network.fusion.tcaf
    arcs = ring_attention(tcaf, features)
    assert [(a.own, a.other) for a in arcs] == [(m, MODALITIES[(i + 1) % 3]) for i, m in enumerate(MODALITIES)]
    assert all(1 <= a.effective_tokens <= a.tokens + 1e-3 and 0 <= a.share_of_other <= 1 for a in arcs)
    uniform = tuple(torch.ones_like(f) for f in features)
    assert all(a.effective_tokens == pytest.approx(a.tokens, rel=1e-4) for a in ring_attention(tcaf, uniform))
    assert ring_attention(None, features) == ()


def test_bundle_models_equal_the_runs(tiny_bundle: Path, random_run: Path):
    """The weights of a bundle's folds equal those of the run it was exported from."""
    from tmi.runtime.explanation.model_source import open_bundle_models

    run, bundle = open_run_models(random_run), open_bundle_models(tiny_bundle)
    assert bundle.folds == run.folds
    for fold in run.folds:
        expected, actual = run.load(fold).network.state_dict(), bundle.load(fold).network.state_dict()
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[k], actual[k]) for k in expected)
