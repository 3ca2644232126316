"""Synthetic trials for choosing training settings without a real cohort (docs/results/README.md).

    python benchmarks/sampled_trials.py OUT --schema docs/examples/mayo-pbc-trial-schema.json

writes the cohorts OUT/0 to OUT/5 of 417 clinical records each. Each trial samples a distribution for every field: it is
narrow, correlated with the other fields through one latent trait, and partly missing. The outcome is a logistic
function of a random half of the fields; about an eighth of the cases is `bad`.

The last line is JSON: the AUC of the true risk in each trial.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from tmi.toolkit.clinical.schema import Field, Schema, load_schema
from tmi.training.text_pretraining.synthetic_records import value_at_position

CASES, BAD, STEEPNESS = 417, 0.125, 2.0


def sample_field(
    rng: np.random.Generator, field: Field, trait: np.ndarray
) -> tuple[list[float | str | None], np.ndarray]:
    """Values of a field, some of them missing, and all values as standardised numbers."""
    loading = rng.uniform(-0.6, 0.6)
    x = loading * trait + np.sqrt(1 - loading**2) * rng.normal(size=len(trait))
    missing = rng.random(len(trait)) < rng.choice([0, 0, 0.05, 0.3])
    values: list[float | str | None]
    if field.choices:
        parts = np.cumsum(rng.dirichlet(np.full(len(field.choices), 1.5)))[:-1]
        number = np.searchsorted(np.quantile(x, parts), x).astype(float)
        values = [field.choices[int(k)] for k in number]
    else:
        number = np.clip(rng.uniform(-0.3, 0.6) + rng.uniform(0.12, 0.3) * x, -1, 1)
        values = [float(f"{v:.3g}") for v in value_at_position(field, number)]
    observed = [None if is_missing else value for is_missing, value in zip(missing, values, strict=True)]
    return observed, (number - number.mean()) / (number.std() + 1e-9)


def write_trial(folder: Path, schema: Schema, seed: int) -> float:
    """Write the cohort of a trial and return the AUC of the true risk."""
    rng = np.random.default_rng((77, seed))
    trait = rng.normal(size=CASES)
    weights = rng.normal(size=len(schema.fields)) * (rng.random(len(schema.fields)) < 0.5)
    fields = [sample_field(rng, field, trait) for field in schema.fields]
    risk = np.stack([numbers for _, numbers in fields], axis=1) @ weights
    risk = STEEPNESS * (risk - risk.mean()) / risk.std()
    # the intercept is the one of 500 whose mean probability of `bad` is nearest to BAD
    offsets = np.linspace(-8, 4, 500)
    parts = np.array([(1 / (1 + np.exp(-(risk + offset)))).mean() for offset in offsets])
    bad = rng.random(CASES) < 1 / (1 + np.exp(-(risk + offsets[np.abs(parts - BAD).argmin()])))
    rows = ["case_id,patient_id,label"]
    for i in range(CASES):
        name = f"d-{i:03d}"
        (folder / name).mkdir(parents=True)
        values = {field.name: observed[i] for field, (observed, _) in zip(schema.fields, fields, strict=True)}
        (folder / name / "clinical.json").write_text(json.dumps({"patient_id": name, "values": values}))
        rows.append(f"{name},{name},{'bad' if bad[i] else 'good'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return float(roc_auc_score(bad, risk))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--schema", type=Path, default=None)
    parser.add_argument("--trials", type=int, default=6)
    options = parser.parse_args()
    schema = load_schema(options.schema)
    print(json.dumps({k: round(write_trial(options.out / str(k), schema, k), 3) for k in range(options.trials)}))


if __name__ == "__main__":
    main()
