"""Fits a fold's statistics for out-of-distribution detection (`tmi.toolkit.trust`) on its training cases alone.

The held-out cases are scored afterwards, and their sorted scores are stored beside the statistics. Centre and spread of
each part come from training cases that were left out of a fit, because distances of fitted cases are too small: the
scaler and the statistics are fitted again without them, the encoders are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn

from tmi.toolkit.config.schema import CLASSES, POSITIVE, Config
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldFolder
from tmi.toolkit.trust.conformal import class_scores
from tmi.toolkit.trust.drift import Summary, join, summarise
from tmi.toolkit.trust.measurements import case_parts, monitored_numbers, volume_statistics
from tmi.toolkit.trust.statistics import FoldTrust, PartStatistics
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.calibration import positive_class_probability
from tmi.training.evaluation.prediction_tables import Predictions

MIN_CASES = 8
"""Smallest number of training cases that statistics are fitted on."""
LEFT_OUT_PARTS = 5
"""Number of parts into which the training cases are divided to be left out of a fit."""
MAX_DIRECTIONS, CASES_PER_DIRECTION = 32, 4
"""Bounds of the number of principal directions; the second keeps single patients out of them."""
ENCODER_FLOOR = 2.0**-6
"""Smallest standard deviation of an encoder's feature, relative to all of them: above the roundings of bfloat16, so
that the precision of an engine is no distance."""
FLOORS: Mapping[str, float] = {
    "image.volume": 0.02,
    "clinical.values": 0.1,
    "clinical.missing": 1.0,
    "clinical.pattern": 0.2,
    "radiomics.features": 0.05,
    "radiomics.clipped": 1.0,
}
"""Smallest standard deviation of a number of each part. Parts of a single share have 1: their distance is the share."""
SPREAD_FLOOR, RELATIVE_SPREAD_FLOOR = 0.02, 0.05
"""Smallest spread of distances, absolute and relative to their median."""
Parts = Mapping[str, Float[np.ndarray, "N D"]]
EncoderFeatures = Mapping[str, Float[np.ndarray, "N C"]]
"""`ct`, `text` -> features of the cohort's cases, by row; other rows are not read."""


def fit_trust(
    arrays: CohortArrays, data: FoldDataset, features: EncoderFeatures, *, fitted_on: tuple[str, ...] | None = None
) -> FoldTrust | None:
    """Statistics of a fold, with the scores of its held-out cases.

    Args:
        arrays: the cohort.
        data: data of the fold, with its scaler.
        features: outputs of the fold's encoders for the training and held-out cases.
        fitted_on: cases to fit on; None: the training cases of the fold.

    Returns:
        None for fewer than `MIN_CASES` training cases, or without held-out cases.
    """
    train = data.split.train if fitted_on is None else fitted_on
    rows, held_out = arrays.rows(train), arrays.rows(data.split.test)
    if len(rows) < MIN_CASES or not len(held_out):
        return None
    measure = _measure(arrays, data, features)
    parts = {name: fit_part(name, values) for name, values in measure(rows, data.scaler).items()}
    left_out: dict[str, list[NDArray[np.float64]]] = {name: [] for name in parts}
    for number in range(LEFT_OUT_PARTS):
        chosen = np.arange(len(rows)) % LEFT_OUT_PARTS == number
        scaler = RadiomicsScaler.fit(arrays.radiomics_NF[rows[~chosen]], data.config.radiomics)
        rest, others = measure(rows[~chosen], scaler), measure(rows[chosen], scaler)
        for name in parts:
            left_out[name].append(fit_part(name, rest[name]).distances(others[name]))
    parts = {name: _with_scale(part, np.concatenate(left_out[name])) for name, part in parts.items()}
    trust = FoldTrust(fold=data.split.fold, fitted_on=len(rows), parts=parts, calibration={})
    scores = trust.scores(measure(held_out, data.scaler))
    return replace(trust, calibration={name: np.sort(values) for name, values in scores.items()})


def write_trust(
    network: nn.Module,
    arrays: CohortArrays,
    data: FoldDataset,
    files: FoldFolder,
    *,
    validation: Predictions,
    test: Predictions,
    temperature: float = 1.0,
) -> None:
    """Fit the statistics of a trained fold and write its file; a cohort that is too small has none.

    Args:
        network: the saved model of the fold.
        arrays: the cohort.
        data: data of the fold.
        files: paths of the fold's files.
        validation: its predictions of the inner validation cases.
        test: its predictions of the held-out cases.
        temperature: divisor of its logits.
    """
    if len(data.split.train) < MIN_CASES:
        return  # before the encoders run on them
    ids = (*data.split.train, *data.split.test)
    trust = fit_trust(arrays, data, encoder_features(network, data, ids, len(arrays.cases)))
    if trust is not None:
        trust = replace(
            trust,
            conformal=conformal_scores(data.config, validation, temperature),
            summary=fold_summary(arrays, data, test, temperature),
        )
        trust.save(files.trust)


def conformal_scores(
    config: Config, validation: Predictions, temperature: float
) -> dict[str, Float[NDArray[np.float64], "n"]]:
    """Sorted scores of the inner validation cases by class, for sets of classes.

    They are empty with the protocol `released`, whose validation split is the held-out fold.
    """
    if config.train.protocol == "released":
        return {}
    scores_NK = class_scores(validation.logits_NK / temperature)
    return {name: np.sort(scores_NK[validation.labels_N == k, k]) for k, name in enumerate(CLASSES)}


def fold_summary(arrays: CohortArrays, data: FoldDataset, test: Predictions, temperature: float) -> Summary:
    """Deciles of a fold's training inputs, and of what its model makes of its held-out cases."""
    modalities = active_modalities(data.config)
    rows, held_out = arrays.rows(data.split.train), arrays.rows(data.split.test)
    clinical, radiomics = "clinical" in modalities, "radiomics" in modalities
    inputs = monitored_numbers(
        volume_NS=np.stack([_volume(arrays, int(row)) for row in rows]) if "image" in modalities else None,
        numbers_NV=arrays.numbers_NV[rows] if clinical else None,
        fields=arrays.fields,
        radiomics_NF=arrays.radiomics_NF[rows] if radiomics else None,
        features=FEATURE_NAMES,
    )
    outputs = {f"prediction.{CLASSES[POSITIVE]}": positive_class_probability(test.logits_NK, temperature)}
    if radiomics:
        outputs["radiomics.clipped"] = data.scaler.transform(arrays.radiomics_NF[held_out]).clipped_NF.mean(axis=1)
    predicted = summarise(outputs)
    return join(summarise(inputs), predicted) if inputs else predicted


def fit_part(name: str, values_ND: Float[np.ndarray, "N D"]) -> PartStatistics:
    """Mean, scale and shrunk covariance of one part; centre and spread are not set."""
    count, size = values_ND.shape
    known_ND = np.isfinite(values_ND)
    present_D = known_ND.sum(axis=0)
    filled = np.where(known_ND, values_ND, 0.0)
    mean = filled.sum(axis=0) / np.maximum(present_D, 1)
    centred = np.where(known_ND, values_ND - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=0) / np.maximum(present_D, 1))
    floor = FLOORS.get(name) or ENCODER_FLOOR * max(float(np.sqrt(np.square(filled).mean())), 1e-6)
    scale = np.where(present_D > 0, np.maximum(deviation, floor), np.inf)
    if size == 1:  # a share: d = |x|
        mean, scale = np.zeros(1), np.ones(1)
        return _statistics(mean, scale, np.zeros((0, 1)), np.zeros(0), 1.0)
    # rounded to what the file holds, so that the scores of a read file are those of the fit
    mean, scale = (a.astype(np.float32).astype(np.float64) for a in (mean, scale))
    z_ND = np.where(known_ND, (values_ND - mean) / scale, 0.0)
    z_ND -= z_ND.mean(axis=0)
    average = float(np.square(z_ND).mean())
    if average == 0.0:  # no number varies
        return _statistics(mean, scale, np.zeros((0, size)), np.zeros(0), 1.0)
    shrinkage = float(ledoit_wolf_shrinkage(z_ND, assume_centered=True))
    kept = max(0, min(MAX_DIRECTIONS, count // CASES_PER_DIRECTION, size - 1))
    _, singular, directions = np.linalg.svd(z_ND, full_matrices=False)
    variances = (1 - shrinkage) * np.square(singular[:kept]) / count + shrinkage * average
    residual = max((size * average - float(variances.sum())) / (size - kept), 1e-3 * average)
    return _statistics(mean, scale, directions[:kept], variances, residual)


def _statistics(
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    directions: NDArray[np.float64],
    variances: NDArray[np.float64],
    residual: float,
) -> PartStatistics:
    return PartStatistics(
        mean_D=mean.astype(np.float32),
        scale_D=scale.astype(np.float32),
        directions_KD=directions.astype(np.float32),
        variances_K=variances,
        residual=residual,
    )


def _with_scale(part: PartStatistics, distances_N: NDArray[np.float64]) -> PartStatistics:
    centre, high = (float(q) for q in np.quantile(distances_N, (0.5, 0.9)))
    return replace(part, centre=centre, spread=max(high - centre, RELATIVE_SPREAD_FLOOR * centre, SPREAD_FLOOR))


def _measure(
    arrays: CohortArrays, data: FoldDataset, features: EncoderFeatures
) -> Callable[[NDArray[np.intp], RadiomicsScaler], Parts]:
    """Function of rows and a scaler that measures the cases of the active modalities."""
    modalities = active_modalities(data.config)
    volume = cache(partial(_volume, arrays))

    def measure(rows: NDArray[np.intp], scaler: RadiomicsScaler) -> Parts:
        found: dict[str, NDArray[np.generic]] = {f"{n}_features_NC": f[rows] for n, f in features.items()}
        if "image" in modalities:
            found["volume_NS"] = np.stack([volume(int(row)) for row in rows])
        if "clinical" in modalities:
            found["numbers_NV"] = arrays.numbers_NV[rows]
        if "radiomics" in modalities:
            scaled = scaler.transform(arrays.radiomics_NF[rows])
            found |= {"radiomics_NR": scaled.values_NF, "clipped_NR": scaled.clipped_NF}
        return case_parts(**found)

    return measure


def _volume(arrays: CohortArrays, row: int) -> NDArray[np.float64]:
    """Statistics of a prepared CT."""
    return volume_statistics(arrays.ct_N1DHW[row], None if arrays.geometry_NG is None else arrays.geometry_NG[row])


def encoder_features(network: nn.Module, data: FoldDataset, case_ids: tuple[str, ...], count: int) -> EncoderFeatures:
    """Outputs of the CT and text encoders of a network for the named cases, in evaluation mode on the CPU.

    Args:
        network: the saved model of the fold; its mode is restored.
        data: data of the fold.
        case_ids: the cases.
        count: number of cases of the cohort, the rows of the result.
    """
    recorded: dict[str, list[NDArray[np.float32]]] = {}
    handles = []
    for name in ("ct", "text"):
        encoder = getattr(network, f"{name}_encoder", None)
        if isinstance(encoder, nn.Module):
            handles.append(encoder.register_forward_hook(_recorder(recorded.setdefault(name, []))))
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for _, batch in data.batches(case_ids):
                network(batch.ct, batch.input_ids, batch.attention_mask, batch.radiomics)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    rows, features = data.rows(case_ids), {}
    for name, parts in recorded.items():
        if parts and sum(map(len, parts)) == len(rows):
            values = np.concatenate(parts)
            features[name] = np.full((count, values.shape[1]), np.nan, np.float32)
            features[name][rows] = values
    return features


def _recorder(into: list[NDArray[np.float32]]) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            into.append(output.float().cpu().numpy())

    return record
