"""A fold's saved model, asked about cases of its cohort."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tmi.toolkit.config import Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.network.restoring import restore
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.toolkit.scaling import RadiomicsScaler
from tmi.toolkit.tokenizer import Tokenizer
from tmi.training.cohort_arrays import CohortArrays
from tmi.training.epoch_end import predict_logits
from tmi.training.fold_data import FoldData
from tmi.training.fold_predictions import Predictions
from tmi.training.systems.build import build_network
from tmi.training.systems.estimator_arrays import load
from tmi.training.systems.estimator_fold import estimator_answers
from tmi.training.systems.registry import system


def saved_network(config: Config, files: FoldFolder) -> nn.Module:
    """The system's network with the weights of the picked epoch.

    Raises:
        DamagedError: they cannot be read, or are of another network, as those of an older version may be.
    """
    try:
        state = load_file(files.model)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"run: {files.model} cannot be read as safetensors", fix="train the run again") from error
    return restore(
        build_network(config, seed=0),
        state,
        where=f"run: the weights in {files.model}",
        fix="use the version of tmi that trained the run (run.json names it), or train it again",
    )


def answers_of(network: nn.Module, data: FoldData, case_ids: tuple[str, ...]) -> Predictions:
    """What a network says of the named cases, on the CPU."""
    logits = predict_logits(network, data, case_ids, torch.device("cpu"))
    return Predictions(case_ids=case_ids, labels_N=data.labels(case_ids), logits_NK=logits.double().numpy())


def ask_fold(
    config: Config, files: FoldFolder, split: FoldSplit, arrays: CohortArrays, case_ids: tuple[str, ...]
) -> Predictions:
    """What a fold's saved files say of cases: its recorded scaler, vocabulary and weights."""
    if system(config.system.name).needs == "sklearn":
        return estimator_answers(config, load(files.model), arrays, case_ids)
    data = FoldData(
        arrays,
        split,
        config,
        tokenizer=Tokenizer.load(files.tokenizer),
        scaler=RadiomicsScaler.load(files.scaler),
    )
    return answers_of(saved_network(config, files), data, case_ids)
