"""Readers of runs, bundles, caches and pre-trained weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from factories.fuzzing import mutators as m
from factories.fuzzing.mutators import Mutator
from factories.fuzzing.registry import PUBLISHED, Prepare, Read, require_code, small_case, target


def _run(folder: Path) -> Any:
    """A run of one fold, without weights."""
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.config.presets import tiny
    from tmi.toolkit.run_folder import FoldSplit, RunFolder
    from tmi.toolkit.storage.atomic_files import write_json

    split = FoldSplit(fold=0, train=("A", "B"), validation=("C",), test=("D",))
    run = RunFolder.create(folder / "run", name="r", config=tiny(), schema=load_schema(), folds=[split],
                           cohort={"cases": 4, "fingerprint": "f", "synthetic": True}, versions={"torch": "2"},
                           vocabulary={"min_patients": 5})  # fmt: skip
    fold = run.fold(0)
    fold.folder.mkdir()
    shutil.copy(PUBLISHED / "bundle" / "scalers" / "fold0.json", fold.scaler)
    shutil.copy(PUBLISHED / "bundle" / "tokenizers" / "text-0.json", fold.tokenizer)
    fold.model.write_bytes(b"weights")
    write_json(fold.metrics, {"calibration": {"temperature": 1.5}, "test": {"roc_auc": 0.5}})
    write_json(folder / "run" / "summary.json", {"calibration": {"threshold": 0.4}, "mean": {"roc_auc": 0.5}})
    run.finish()
    return run


def _run_document(name: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.config.project import Project, newest_finished_run
        from tmi.toolkit.run_folder import RunFolder

        path = _run(folder).path

        def read() -> None:
            newest_finished_run(Project(root=folder, runs="."))
            run = RunFolder.open(path)
            _ = run.rendering_version, run.vocabulary, run.finished, run.threshold
            _ = [run.fold(s.fold).temperature for s in run.folds]
            run.require_finished()

        return read

    return prepare


for _name in ("run.json", "config.json", "folds.json", "clinical_schema.json", "fold0/metrics.json", "summary.json"):
    target(f"run: {_name}", f"run/{_name}", m.json_document)(_run_document(_name))


def _bundle(name: str, *, present: bool = False) -> Prepare:
    """The published bundle, or with `present` in the present schema; a forger computes the digests of a file again."""

    def prepare(folder: Path) -> Read:
        from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema, bundled_tokenizer
        from tmi.runtime.bundle.manifest import DIGEST_FILE, MANIFEST_FILE
        from tmi.runtime.bundle.reader import open_bundle, write_manifest
        from tmi.runtime.verification.golden_inputs import first_golden_input
        from tmi.runtime.verification.preprocessing_check import check_preprocessing
        from tmi.runtime.verification.verify import read_references
        from tmi.toolkit.storage.hashing import sha256_bytes

        bundle_folder = folder / "bundle"
        shutil.copytree(PUBLISHED / "bundle", bundle_folder)
        if present:
            write_manifest(bundle_folder, open_bundle(bundle_folder).manifest)
        manifest, file = bundle_folder / MANIFEST_FILE, bundle_folder / name
        valid = manifest.read_bytes()

        def read() -> None:
            if name != MANIFEST_FILE:
                document, data = json.loads(valid), file.read_bytes()
                document["files"][name] = {"sha256": sha256_bytes(data), "bytes": len(data)}
                manifest.write_text(json.dumps(document))
            digest = sha256_bytes(manifest.read_bytes())
            (bundle_folder / DIGEST_FILE).write_text(f"{digest}  {MANIFEST_FILE}\n")
            bundle = open_bundle(bundle_folder)
            bundled_schema(bundle)
            for fold in bundle.manifest.folds:
                if fold.scaler is not None:
                    bundled_scaler(bundle, fold.scaler)
            for graph in bundle.manifest.graphs:
                if graph.tokenizer is not None:
                    bundled_tokenizer(bundle, graph.tokenizer)
            if name.endswith(".safetensors"):
                read_references(bundle)
                check_preprocessing(bundle)
            elif name == MANIFEST_FILE:
                first_golden_input(bundle.manifest)

        return read

    return prepare


for _name in ("manifest.json", "clinical_schema.json", "scalers/fold0.json", "tokenizers/text-0.json"):
    target(f"bundle: {_name}", f"bundle/{_name}", m.json_document)(_bundle(_name))
for _name in ("golden.safetensors", "golden-case.safetensors"):
    target(f"bundle: {_name}", f"bundle/{_name}", m.safetensors)(_bundle(_name))


target("bundle: manifest.json of the present schema", "bundle/manifest.json", m.json_document)(
    _bundle("manifest.json", present=True)
)


@target("inspection of a bundle", "bundle/manifest.json", m.json_document)
def _inspected(folder: Path) -> Read:
    from factories.tmi_command import tmi
    from tmi.toolkit.storage.hashing import sha256_file

    shutil.copytree(PUBLISHED / "bundle", folder / "bundle")
    manifest = folder / "bundle" / "manifest.json"

    def read() -> None:
        (folder / "bundle" / "manifest.json.sha256").write_text(f"{sha256_file(manifest)}  manifest.json\n")
        require_code(tmi("inspect", folder / "bundle"))

    return read


@target("log of results", "p.json.unfinished.jsonl", m.json_lines)
def _result_log(folder: Path) -> Read:
    from tmi.runtime.serving.result_log import ResultLog
    from tmi.runtime.serving.results import RejectedCase

    cases = [small_case(folder)]
    path, identity = folder / "p.json.unfinished.jsonl", {"bundle": "b", "engine": "onnx", "threshold": 0.5}
    with ResultLog.begin(path, identity, cases) as log:
        log.append(RejectedCase(case_id="C", code="ct-nan", what="NaN", fix="export again"))

    def read() -> None:
        with ResultLog.resume(path, identity, cases):
            pass

    return read


@target("cached self-test", "cache/opened.json", m.json_document)
def _self_test(folder: Path) -> Read:
    import os

    from tmi.runtime.bundle.reader import inspect_bundle
    from tmi.runtime.verification import self_test
    from tmi.toolkit.storage.hashing import sha256_json
    from tmi.toolkit.storage.private_files import write_private

    bundle = inspect_bundle(PUBLISHED / "bundle")
    key = self_test.self_test_key(bundle, "onnx")
    write_private(folder / "cache" / "opened.json", [json.dumps({"combination": key, "seconds": 1.0}).encode()])

    def read() -> None:
        os.environ["TMI_CACHE"] = str(folder / "cache")
        entry = folder / "cache" / "opened" / f"{sha256_json(key)}.json"
        write_private(entry, [(folder / "cache" / "opened.json").read_bytes()])
        self_test.cached_result(bundle, "onnx")

    return read


@target("cached case", "entry", m.length_prefixed_json)
def _cached_case(folder: Path) -> Read:
    from tmi.toolkit.config.schema import N_RADIOMICS, CtConfig
    from tmi.toolkit.issues.issue import Issue
    from tmi.toolkit.preprocessing import cache

    config = CtConfig(shape_DHW=(16, 16, 16))
    warning = Issue.of("ct-unit", "the voxel sizes have no unit", "state it")
    images = cache.PreparedImages(ct_1DHW=np.zeros((1, 16, 16, 16), np.float32), warnings=(warning,),
                                  radiomics_F=np.zeros(N_RADIOMICS))  # fmt: skip
    (folder / "entry").write_bytes(cache._encode(images))
    return lambda: cache._decode((folder / "entry").read_bytes(), config, extract=True)


@target("predictions of a fold", "predictions.csv", m.csv_table, torch=True)
def _predictions(folder: Path) -> Read:
    from tmi.training.evaluation.prediction_tables import COLUMNS, read_predictions

    row = {"case_id": "A", "label": "bad"}
    lines = [",".join(COLUMNS), ",".join(row.get(c, "0.5") for c in COLUMNS)]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    return lambda: read_predictions(folder / "predictions.csv")


def _bert(folder: Path) -> Read:
    from factories.pretrained_files import write_bert
    from tmi.toolkit.config.presets import tiny
    from tmi.training.pretrained.text_weights import bert_settings, bert_tokenizer, read_text_weights

    write_bert(folder / "bert")
    config = tiny().network.text_encoder

    def read() -> None:
        bert_tokenizer(folder / "bert")
        read_text_weights(folder / "bert", bert_settings(folder / "bert", config))

    return read


BERT: Mapping[str, Mutator] = {"config.json": m.json_document, "vocab.txt": m.text}
for _name, _mutate in BERT.items():
    target(f"BERT: {_name}", f"bert/{_name}", _mutate, torch=True)(_bert)


@target("weights in safetensors", "w.safetensors", m.safetensors, torch=True)
def _safetensors(folder: Path) -> Read:
    import torch
    from safetensors.torch import save_file

    from tmi.training.pretrained.weight_file import read_weights

    save_file({"a.weight": torch.ones(3, 4), "b": torch.zeros(2)}, folder / "w.safetensors")
    return lambda: read_weights(folder / "w.safetensors")


@target("weights of torch", "w.pt", m.any_bytes, torch=True)
def _torch_weights(folder: Path) -> Read:
    import torch

    from tmi.training.pretrained.weight_file import read_weights

    torch.save({"state_dict": {"a.weight": torch.ones(3, 4)}}, folder / "w.pt")
    return lambda: read_weights(folder / "w.pt")
