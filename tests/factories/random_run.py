"""A finished run with random weights, written with `RunFolder` and without training."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.clinical.schema import Schema, load_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import CONFIG_FILE, SUMMARY_FILE, SUMMARY_TEXT_FILE, FoldSplit, RunFolder
from tmi.toolkit.storage.atomic_files import write_json, write_text
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.serialization import to_json

CASES_PER_FOLD = 3
RANGES = {
    "weight": (0.8, 1.2),
    "bias": (-0.2, 0.2),
    "running_mean": (-0.1, 0.1),
    "running_var": (0.5, 1.5),
    "num_batches_tracked": (7, 7),
}
"""Ranges from which the tensors of a norm are sampled."""


def write_random_run(
    folder: Path,
    config: Config,
    *,
    folds: int = 2,
    seed: int = 0,
    shared_text: bool = False,
    shared_ct: bool = False,
    vocab: Path | None = None,
    schema: Schema | None = None,
    cohort: Path | None = None,
) -> Path:
    """Write the run and return its folder.

    Args:
        folder: folder of the run; must be empty or missing.
        config: any config; its network is built in full size.
        folds: number of folds.
        seed: seed of weights, scalers and tokenizers.
        shared_text: whether all folds have the text encoder and tokenizer of the first, as with a frozen encoder.
        shared_ct: whether all folds have the CT encoder of the first.
        vocab: BERT vocab.txt of the tokenizers; None trains a vocabulary for each fold.
        schema: clinical schema of the run; None for the packaged one.
        cohort: cohort that the run is said to be trained on; None for one that does not exist.
    """
    ids = [f"P{n:03d}" for n in range(folds * CASES_PER_FOLD)]
    fingerprint = sha256_json(ids)
    if cohort is not None:
        opened = open_cohort(cohort)
        ids, fingerprint = [case.case_id for case in opened.cases], cohort_fingerprint(opened)
    run = RunFolder.create(
        folder,
        name=folder.name,
        config=config,
        schema=schema or load_schema(),
        folds=[_split(ids, fold, folds) for fold in range(folds)],
        cohort={"cases": len(ids), "fingerprint": fingerprint, "synthetic": True},
        versions={"torch": torch.__version__},
    )
    first: dict[str, torch.Tensor] = {}
    for fold in range(folds):
        state = random_model(config, seed=100 * seed + fold).state_dict()
        first = first or {key: t.clone() for key, t in state.items()}
        prefixes = (("text_encoder.",) if shared_text else ()) + (("ct_encoder.",) if shared_ct else ())
        state |= {key: t for key, t in first.items() if key.startswith(prefixes)} if prefixes else {}
        _write_fold(run, fold, config, state, seed=seed, text_seed=0 if shared_text else fold, vocab=vocab)
    write_json(folder / SUMMARY_FILE, {"mean": {"roc_auc": 0.5}, "standard_deviation": {"roc_auc": 0.0}})
    write_text(folder / SUMMARY_TEXT_FILE, "Random weights: the metrics have no meaning.\n")
    run.finish()
    return folder


def with_modalities(run: Path, folder: Path, modalities: tuple[str, ...]) -> Path:
    """Copy of a run that uses fewer modalities, with random weights of that network."""
    shutil.copytree(run, folder)
    config = RunFolder.open(run).config
    config = replace(config, network=replace(config.network, modalities=modalities))
    write_json(folder / CONFIG_FILE, to_json(config))
    opened = RunFolder.open(folder)
    for split in opened.folds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split.fold)
            save_file(create_network(config).state_dict(), opened.fold(split.fold).model)
    opened.finish()
    return folder


def random_model(config: Config, *, seed: int) -> Any:
    """A network with random weights and norms.

    The scales, shifts and statistics of norms differ from the initial ones: a norm with weight 1 and bias 0 would hide
    a lost weight.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_network(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)):
            low, high = RANGES[name.rpartition(".")[2]]
            if tensor.is_floating_point():
                tensor.uniform_(low, high, generator=generator)
            else:
                tensor.fill_(7)
    return model


def _split(ids: list[str], fold: int, folds: int) -> FoldSplit:
    test = ids[fold::folds]
    rest = [i for i in ids if i not in test]
    return FoldSplit(fold=fold, train=tuple(rest[1:]), validation=tuple(rest[:1]), test=tuple(test))


def _write_fold(
    run: RunFolder,
    fold: int,
    config: Config,
    state: dict[str, torch.Tensor],
    *,
    seed: int,
    text_seed: int,
    vocab: Path | None,
) -> None:
    files = run.fold(fold)
    files.folder.mkdir()
    save_file({key: t.contiguous() for key, t in state.items()}, files.model)
    rng = np.random.default_rng([seed, fold])
    scale = np.exp(rng.uniform(-3, 8, size=N_RADIOMICS))
    RadiomicsScaler.fit(rng.normal(size=(8, N_RADIOMICS)) * scale, config.radiomics).save(files.scaler)
    _tokenizer(config, np.random.default_rng([seed, text_seed, 1]), vocab).save(files.tokenizer)
    write_json(files.metrics, {"epoch": 1, "roc_auc": 0.5})
    split = run.folds[fold]
    for path, header, rows in (
        (files.predictions, ("case_id", "label", "probability"), [(i, n % 2, 0.5) for n, i in enumerate(split.test)]),
        (files.history, ("epoch", "loss"), [(1, 0.7)]),
    ):
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _tokenizer(config: Config, rng: np.random.Generator, vocab: Path | None) -> Tokenizer:
    if vocab is not None:
        return Tokenizer.from_vocab(vocab)
    names = [field.label for field in load_schema().fields]
    texts = [
        " ".join(f"{name}: missing. {name}: {rng.uniform(1, 200):.1f}." for name in rng.permutation(names))
        for _ in range(4)
    ]
    return Tokenizer.train(texts, config.clinical.vocab_size or config.network.text_encoder.vocab_size)
