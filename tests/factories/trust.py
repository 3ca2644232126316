"""Runs and bundles with trust statistics, made without training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from factories.planted_faults import manifest_at, reseal
from tmi.runtime.bundle.manifest import GOLDEN_CASE_FILE
from tmi.runtime.bundle.manifest_records import TrustRecord
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.serving.pipeline import InferencePipeline
from tmi.runtime.verification.preprocessing_check import output_metadata
from tmi.toolkit.cases.case import find_cases
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.models.registry import feature_width
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.trust.measurements import case_parts, volume_statistics
from tmi.toolkit.trust.statistics import FoldTrust
from tmi.training.evaluation.trust_fitting import fit_part

HELD_OUT = 30
"""Number of held-out cases of each fold that the statistics are said to have."""


def trust_of_parts(fold: int, parts: dict[str, np.ndarray]) -> FoldTrust:
    """Statistics fitted on measurements, which then have high p-values: the scores of held-out cases reach farther."""
    fitted = {name: replace(fit_part(name, values), spread=0.1) for name, values in parts.items()}
    trust = FoldTrust(fold=fold, fitted_on=20, parts=fitted, calibration={})
    scores = trust.scores(parts)
    spread = {name: np.linspace(values.min(), values.max() + 1.0, HELD_OUT) for name, values in scores.items()}
    own = {name: np.linspace(-2.0, 2.0, HELD_OUT) for name in ("good", "bad")}
    return replace(trust, calibration=spread, conformal=own)


def random_trust(config: Config, fold: int) -> FoldTrust:
    """Statistics of random measurements that fit a config's network."""
    rng = np.random.default_rng(fold)
    parts = case_parts(
        ct_features_NC=rng.normal(size=(20, feature_width(config, "image"))),
        volume_NS=np.stack([volume_statistics(rng.uniform(size=(1, 4, 6, 6)), np.ones(6)) for _ in range(20)]),
        text_features_NC=rng.normal(size=(20, feature_width(config, "clinical"))),
        numbers_NV=rng.normal(size=(20, len(load_schema().fields))),
        radiomics_NR=rng.uniform(-1, 1, size=(20, N_RADIOMICS)),
        clipped_NR=rng.uniform(size=(20, N_RADIOMICS)) < 0.02,
    )
    return trust_of_parts(fold, parts)


def run_with_trust(run: Path, target: Path) -> Path:
    """Copy of a finished run whose folds have random statistics."""
    shutil.copytree(run, target)
    opened = RunFolder.open(target)
    for split in opened.folds:
        random_trust(opened.config, split.fold).save(opened.fold(split.fold).trust)
    opened.finish()
    return target


def bundle_with_trust(bundle: Path, target: Path, cases: Sequence[Path]) -> Path:
    """Copy of a bundle with statistics of some cases, which are then like the training cases."""
    shutil.copytree(bundle, target)
    opened = open_bundle(target)
    with open_engine("onnx", opened, threads=1) as engine:
        pipeline = InferencePipeline(opened, engine)
        prepared = [pipeline.scale(pipeline.prepare(case)) for case in find_cases(cases)]
        text = pipeline.encode_text(pipeline.tokenise([case.case.text for case in prepared]))
        batch = pipeline.collate(prepared, text)
        ct = pipeline.encode_ct(batch).features
    volumes = np.stack([volume_statistics(case.case.ct_1DHW, case.case.geometry_G) for case in prepared])
    (target / "trust").mkdir()
    files = []
    for index, fold in enumerate(opened.manifest.folds):
        parts = case_parts(
            ct_features_NC=ct[fold.ct],
            volume_NS=volumes,
            text_features_NC=batch.text[fold.text],
            numbers_NV=np.stack([case.case.numbers_V for case in prepared]),
            radiomics_NR=batch.radiomics_BFR[:, index],
            clipped_NR=np.stack([case.clipped_FR[index] for case in prepared]),
        )
        files.append(f"trust/fold{fold.fold}.safetensors")
        trust_of_parts(fold.fold, parts).save(target / files[-1])
    record = TrustRecord(level=0.05, cases=HELD_OUT * len(files), files=tuple(files))
    restate(target, replace(opened.manifest, trust=record))
    return target


def restate(folder: Path, manifest=None) -> None:
    """Let the golden case state the bundle as it is, and compute all fingerprints again, as an export would."""
    reseal(folder, **({} if manifest is None else {"trust": manifest.trust}))
    bundle = Bundle(folder=folder, manifest=manifest_at(folder), digest="")
    golden = folder / GOLDEN_CASE_FILE
    save_file(load_file(golden), golden, metadata=output_metadata(bundle))
    reseal(folder)


def bundle_with_random_trust(bundle: Path, target: Path) -> Path:
    """Copy of a bundle with random statistics, without its signature."""
    shutil.copytree(bundle, target)
    (target / "signature.sig").unlink(missing_ok=True)
    (target / "trust").mkdir()
    manifest = manifest_at(target)
    files = tuple(f"trust/fold{fold.fold}.safetensors" for fold in manifest.folds)
    for fold, name in zip(manifest.folds, files, strict=True):
        random_trust(manifest.config, fold.fold).save(target / name)
    restate(target, replace(manifest, trust=TrustRecord(level=0.05, cases=HELD_OUT * len(files), files=files)))
    return target
