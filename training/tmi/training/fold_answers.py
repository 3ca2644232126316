"""A fold's saved model, asked about cases of its cohort."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tmi.toolkit.config import Config
from tmi.toolkit.network.tmi_clnet import TmiClnet, build
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.toolkit.scaling import RadiomicsScaler
from tmi.toolkit.tokenizer import Tokenizer
from tmi.training.cohort_arrays import CohortArrays
from tmi.training.epoch_end import predict_logits
from tmi.training.fold_data import FoldData
from tmi.training.fold_predictions import Predictions


def saved_network(config: Config, files: FoldFolder) -> TmiClnet:
    """The network with the weights of the picked epoch."""
    network = build(config.network, seed=0)
    network.load_state_dict(load_file(files.model))
    return network


def answers_of(network: TmiClnet, data: FoldData, case_ids: tuple[str, ...]) -> Predictions:
    """What a network says of the named cases, on the CPU."""
    logits = predict_logits(network, data, case_ids, torch.device("cpu"))
    return Predictions(case_ids=case_ids, labels_N=data.labels(case_ids), logits_NK=logits.double().numpy())


def ask_fold(
    config: Config, files: FoldFolder, split: FoldSplit, arrays: CohortArrays, case_ids: tuple[str, ...]
) -> Predictions:
    """What a fold's saved files say of cases: its recorded scaler, vocabulary and weights."""
    data = FoldData(
        arrays,
        split,
        config,
        tokenizer=Tokenizer.load(files.tokenizer),
        scaler=RadiomicsScaler.load(files.scaler),
    )
    return answers_of(saved_network(config, files), data, case_ids)
