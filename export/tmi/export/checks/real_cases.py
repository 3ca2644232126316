"""Validation of an export on real cases (`tmi export --cases`). The bundle keeps only hashes and outputs of them.

Golden inputs are synthetic, so a bundle contains no patient data. Real cases are preprocessed as in training, with the
run's scalers and tokenizers, and run through the eager model and through every engine. `evidence/real-cases.json`
stores the SHA-256 of each network input and the outputs, without names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tmi.export.checks.eager_reference import compute_eager_reference
from tmi.export.checks.validation_set import RealCase
from tmi.export.graphs.partition import FoldModels, GraphPartition
from tmi.runtime.verification.golden_inputs import GoldenInputs, GoldenText
from tmi.toolkit.cases.case import find_cases
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RunFolder


def read_real_cases(
    folders: Sequence[Path], run: RunFolder, partition: GraphPartition, models: FoldModels
) -> list[RealCase]:
    """Preprocess the cases and compute their eager reference outputs.

    Args:
        folders: case folders or cohort folders.
        run: run whose scalers and tokenizers are used.
        partition: graphs of the run.
        models: the fold models.

    Raises:
        UsageError: `folders` contain no case.
        InputRejectedError: a case cannot be used for prediction; the message names it.
    """
    if not folders:
        return []
    cases = find_cases(list(folders))
    if not cases:
        raise UsageError("no case found with --cases", fix="give case folders or a cohort folder")
    modalities = active_modalities(run.config)
    real_cases = []
    for case in cases:
        inputs = network_inputs(prepare_case(case, run.config, run.schema, modalities=modalities), run, partition)
        real_cases.append(RealCase(inputs=inputs, reference=compute_eager_reference(models, partition, inputs)))
    return real_cases


def network_inputs(prepared: PreparedCase, run: RunFolder, partition: GraphPartition) -> GoldenInputs:
    """Network inputs of a prepared case for every fold, in the form of one golden case."""
    clinical = run.config.clinical
    texts = {}
    for encoder in partition.encoders:
        if encoder.tokenizer is not None:
            encoded = Tokenizer.load(encoder.tokenizer).encode(
                [prepared.text], max_length=clinical.max_length, pad_to_max=clinical.pad_to_max
            )
            texts[encoder.name] = GoldenText(
                input_ids_BT=encoded.input_ids_BT, attention_mask_BT=encoded.attention_mask_BT
            )
    scalers = [RadiomicsScaler.load(run.fold(fold).scaler) for fold in partition.folds]
    rows = [scaler.transform(prepared.radiomics_F[None]).values_NF for scaler in scalers]
    return GoldenInputs(seed=0, ct_B1DHW=prepared.ct_1DHW[None], texts=texts, radiomics_BFR=np.stack(rows, axis=1))
