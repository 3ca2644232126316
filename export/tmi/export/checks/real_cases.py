"""Real cases at the export: judged like the golden inputs, and gone again; hashes and outputs are what stays.

Golden inputs are synthetic, so that no patient leaves with a bundle. `tmi export --cases` adds real ones: each is
prepared as in training, with the run's own scalers and tokenizers, asked of the eager model and of every engine.
`evidence/real-cases.json` then holds, without names, the SHA-256 of each network input and the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tmi.export.checks.eager_reference import eager_reference
from tmi.export.checks.validation_set import RealCase
from tmi.export.graphs.partition import FoldModels, GraphPartition
from tmi.runtime.verification.golden_inputs import GoldenInputs, GoldenText
from tmi.runtime.verification.parity import Outputs
from tmi.toolkit.cases.case import find_cases
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import write_json


def read_real_cases(
    folders: Sequence[Path], run: RunFolder, partition: GraphPartition, models: FoldModels
) -> list[RealCase]:
    """Prepare the cases and ask the eager model.

    Args:
        folders: case folders or cohort folders.
        run: gives scalers and tokenizers.
        partition: names the text graphs.
        models: the fold models.

    Raises:
        UsageError: no case there.
        InputRejectedError: a case that no prediction would take; it is named.
    """
    if not folders:
        return []
    found = find_cases(list(folders))
    if not found:
        raise UsageError("no case given with --cases", fix="give case folders or a cohort folder")
    cases = []
    for case in found:
        inputs = _inputs(
            prepare_case(case, run.config, run.schema, modalities=active_modalities(run.config)), run, partition
        )
        cases.append(RealCase(inputs=inputs, reference=eager_reference(models, partition, inputs)))
    return cases


def write_real_cases(path: Path, cases: Sequence[RealCase]) -> None:
    """Hashes of the inputs and everybody's outputs."""
    rows = [
        {
            "inputs": case.inputs.digests(),
            "eager": _outputs_document(case.reference),
            "engines": {name: _outputs_document(outputs) for name, outputs in case.outputs.items()},
        }
        for case in cases
    ]
    # in the order of the hashes, so that the order of the cases on the command line stays behind too
    write_json(path, {"cases": sorted(rows, key=lambda row: str(row["inputs"]["ct"]))})


def _outputs_document(outputs: Outputs) -> dict[str, Any]:
    return {
        "logits": outputs.logits_BFK[0].astype(float).tolist(),
        "probabilities": outputs.probabilities_BK[0].tolist(),
    }


def _inputs(prepared: PreparedCase, run: RunFolder, partition: GraphPartition) -> GoldenInputs:
    clinical = run.config.clinical
    texts = {}
    for plan in partition.encoders:
        if plan.tokenizer is not None:
            encoded = Tokenizer.load(plan.tokenizer).encode(
                [prepared.text], max_length=clinical.max_length, pad_to_max=clinical.pad_to_max
            )
            texts[plan.name] = GoldenText(
                input_ids_BT=encoded.input_ids_BT, attention_mask_BT=encoded.attention_mask_BT
            )
    scalers = [RadiomicsScaler.load(run.fold(fold).scaler) for fold in partition.folds]
    rows = [scaler.transform(prepared.radiomics_F[None]).values_NF for scaler in scalers]
    return GoldenInputs(seed=0, ct_B1DHW=prepared.ct_1DHW[None], texts=texts, radiomics_BFR=np.stack(rows, axis=1))
