"""Inference with the saved model of a fold on cases of its cohort, or of another one."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import POSITIVE, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.models.registry import configured_model
from tmi.toolkit.models.weights import load_weights_strict
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES, require_bounded
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.prediction_tables import Predictions
from tmi.training.systems.factory import build_network
from tmi.training.systems.sklearn_arrays import Arrays, load, probability

MIN_PROBABILITY = 1e-9
"""Bound of an estimator's probability: a forest can return 0 or 1, whose logits would be infinite."""


def predict_logits(
    network: nn.Module, data: FoldDataset, case_ids: tuple[str, ...], device: torch.device
) -> Float[torch.Tensor, "N K"]:
    """Logits of the named cases in evaluation mode, on the CPU; the network's mode is restored."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            rows = []
            for _, batch in data.batches(case_ids):
                moved = batch.to(device)
                output = network(moved.ct, moved.input_ids, moved.attention_mask, moved.radiomics)
                rows.append(output.logits_BK.float().cpu())
    finally:
        network.train(training)
    return torch.cat(rows)


def positive_probability(logits_NK: Float[torch.Tensor, "N K"]) -> Float[np.ndarray, " N"]:
    """Probability of the positive class; float64."""
    probability: np.ndarray = logits_NK.double().softmax(dim=1)[:, POSITIVE].numpy()
    return probability


def load_fold_network(config: Config, files: FoldFolder) -> nn.Module:
    """The configured network with the weights of the picked epoch.

    Raises:
        DamagedError: the weights cannot be read or do not match the network, for example those of an older version.
    """
    try:
        require_bounded(files.model, max_bytes=WEIGHTS_BYTES)
        state = load_file(files.model)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"run: {files.model} cannot be read as safetensors", fix="train the run again") from error
    return load_weights_strict(
        build_network(config, seed=0),
        state,
        where=f"run: the weights in {files.model}",
        fix="use the version of tmi that trained the run (run.json names it), or train it again",
    )


def predict_cases(network: nn.Module, data: FoldDataset, case_ids: tuple[str, ...]) -> Predictions:
    """Predictions of a network for the named cases, on the CPU."""
    logits = predict_logits(network, data, case_ids, torch.device("cpu"))
    return Predictions(case_ids=case_ids, labels_N=data.labels(case_ids), logits_NK=logits.double().numpy())


def predict_fold(
    config: Config, files: FoldFolder, split: FoldSplit, arrays: CohortArrays, case_ids: tuple[str, ...]
) -> Predictions:
    """Predictions from the saved scaler, tokenizer and weights of a fold; `arrays` may be those of another cohort."""
    if configured_model(config).trainer == "sklearn":
        return predict_estimator(config, load(files.model), arrays, case_ids)
    data = FoldDataset(
        arrays,
        split,
        config,
        tokenizer=Tokenizer.load(files.tokenizer),
        scaler=RadiomicsScaler.load(files.scaler),
    )
    return predict_cases(load_fold_network(config, files), data, case_ids)


def predict_estimator(config: Config, stored: Arrays, arrays: CohortArrays, case_ids: tuple[str, ...]) -> Predictions:
    """Predictions of a stored estimator for the named cases; probability p becomes the logits log(1 - p), log(p)."""
    p = np.clip(
        probability(stored, estimator_features(config, arrays, case_ids)), MIN_PROBABILITY, 1.0 - MIN_PROBABILITY
    )
    labels = arrays.labels_N[arrays.rows(case_ids)]
    return Predictions(case_ids=case_ids, labels_N=labels, logits_NK=np.stack((np.log1p(-p), np.log(p)), axis=1))


def estimator_features(config: Config, arrays: CohortArrays, case_ids: tuple[str, ...]) -> np.ndarray:
    """Inputs [N, F] of a scikit-learn model: clinical numbers, radiomics or both in this order, NaN where missing."""
    inputs = {"clinical": arrays.numbers_NV, "radiomics": arrays.radiomics_NF}
    rows = arrays.rows(case_ids)
    values = np.concatenate([inputs[m][rows] for m in configured_model(config).modalities], axis=1)
    return np.where(np.isfinite(values), values, np.nan)
