"""How much of the TCAF's output comes from the modality that it attends to?

    python benchmarks/tcaf_share.py RUN COHORT

For each fold of a TMI-CLNet run, the TCAF of the held-out cases gets the keys and values of another case, while the
queries and the modality's own features stay. `share` is the part of the output's variance over the cases that changes
with them; `auc` and `auc_exchanged` are the AUC of the held-out cases with their own and with exchanged features. The
last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.models.tmi_clnet.tcaf import TripleModalCrossAttention
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RunFolder
from tmi.training.data.dataset import prepare_cohort
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.fold_inference import load_fold_network
from tmi.training.evaluation.metrics import binary_metrics


def exchanged(
    tcaf: TripleModalCrossAttention, features: tuple[Float[Tensor, "B C"], ...], order: Tensor
) -> Float[Tensor, "B 1 L"]:
    """Output of the TCAF in which the attended modality's keys and values are those of the cases `order`."""
    width = features[0].shape[1]
    parts = []
    for i in range(len(features)):
        mixed = tuple(f if k == i else f[order] for k, f in enumerate(features))
        parts.append(tcaf(*mixed)[:, :, i * width : (i + 1) * width])
    return torch.cat(parts, dim=2)


def variance_share(output: Float[Tensor, "B 1 L"], other: Float[Tensor, "B 1 L"]) -> float:
    """Share of the variance over the cases that differs between two outputs: half the mean squared difference."""
    difference = 0.5 * (output - other).square().mean()
    return float(difference / output.var(dim=0, correction=0).mean())


def measure(run: RunFolder, cohort: Path) -> list[dict[str, Any]]:
    """Share and AUCs of each fold."""
    with tempfile.TemporaryDirectory() as scratch:
        arrays = prepare_cohort(open_cohort(cohort), run.config, run.schema, store=Path(scratch) / "ct.npy")
        rows = []
        for split in run.folds:
            files = run.fold(split.fold)
            network = load_fold_network(run.config, files).eval()
            data = FoldDataset(
                arrays,
                split,
                run.config,
                tokenizer=Tokenizer.load(files.tokenizer),
                scaler=RadiomicsScaler.load(files.scaler),
            )
            batch, fusion = data.batch(split.test), network.fusion
            with torch.no_grad():
                result = network(batch.ct, batch.input_ids, batch.attention_mask, batch.radiomics)
                features = (result.clinical_BC, result.radiomics_BC, result.image_BC)
                output = fusion.tcaf(*features)
                order = torch.roll(torch.arange(len(split.test)), 1)
                other = exchanged(fusion.tcaf, features, order)
                logits = {"auc": fusion.head(output), "auc_exchanged": fusion.head(other)}
            aucs = {
                name: binary_metrics(batch.labels.numpy(), np.asarray(value.double().softmax(dim=1)[:, 1]))["roc_auc"]
                for name, value in logits.items()
            }
            rows.append({"fold": split.fold, "share": variance_share(output, other), **aucs})
    return rows


def main() -> None:
    """Print one line for each fold, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("cohort", type=Path)
    arguments = parser.parse_args()
    rows = measure(RunFolder.open(arguments.run), arguments.cohort)
    for row in rows:
        print(f"fold {row['fold']}: {100 * row['share']:.3f} % of the variance; AUC {row['auc']} with own, "
              f"{row['auc_exchanged']} with exchanged keys and values")  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
