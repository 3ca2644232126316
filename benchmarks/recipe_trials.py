"""Does an ingredient of a training gain anything? Paired trials on synthetic cohorts that no test or table uses.

    python benchmarks/recipe_trials.py OUT --variant "cosine=train.schedule=cosine,train.warmup_epochs=2" --replicates 3

Each replicate samples a cohort of 64 cases (51 to train, 13 to validate) with a seed of its own, trains preset `tiny`
with a CT of 16x32x32 voxels once as it is (`plain`) and once with each variant, from the same initial weights, and
evaluates it on 160 cases of a further cohort. OUT/results.jsonl gets a line for each training; a repeated command
trains only what is missing. `--text FOLDER` is an encoder of `tmi pretrain-text` for variants whose name begins with
`text`. The last lines are a table: the mean AUC of each variant, and the mean of its paired differences from `plain`
with the 95% interval of Student's t over the replicates. With `--records` the cohorts have no images, and the model is
the text encoder alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.stats import t as student

EXTERNAL_SEED, CASES, EXTERNAL_CASES, FIRST_SEED = 990, 64, 160, 901
PLAIN = "plain"


def concatenate(first: Any, second: Any) -> Any:
    """Two prepared cohorts as one."""
    both = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in fields(first)}
    return type(first)(
        **{k: np.concatenate((a, b)) if isinstance(a, np.ndarray) else a + b for k, (a, b) in both.items()}
    )


def prepare(folder: Path, config: Any, schema: Any) -> Any:
    """The prepared cases of a cohort, from the cache if there are any."""
    from tmi.toolkit.cases.case import open_cohort
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.training.data.dataset import prepare_cohort

    return prepare_cohort(open_cohort(folder), config, schema, store=folder / "ct.npy", cache=PreparedCache())


def cohort(folder: Path, cases: int, seed: int) -> Path:
    """A synthetic cohort; it is written once."""
    from tmi.toolkit.synthetic.cohort import make_cohort

    if not folder.is_dir():
        make_cohort(folder, cases=cases, seed=seed, jobs=1)
    return folder


def records(folder: Path, cases: int, seed: int) -> Path:
    """The clinical records of a synthetic cohort, without its images; written once."""
    from tmi.toolkit.config.schema import CLASSES
    from tmi.toolkit.synthetic.clinical_record import sample_record
    from tmi.toolkit.synthetic.cohort import plan_cohort
    from tmi.toolkit.synthetic.generative_model import LatentSeverityModel, sample_signals

    model = LatentSeverityModel()
    rows = ["case_id,patient_id,label"]
    for plan in plan_cohort(cases, seed, model):
        signals_stream, _, record_stream, _ = np.random.SeedSequence([seed, 2, plan.index]).spawn(4)
        signals = sample_signals(np.random.default_rng(signals_stream), plan.patient.severity, model)
        record, _ = sample_record(
            np.random.default_rng(record_stream),
            patient_id=plan.patient.patient_id,
            person=plan.patient.person,
            body=plan.patient.body,
            blood=model.standardized("blood", signals.blood),
        )
        (folder / plan.case_id).mkdir(parents=True, exist_ok=True)
        (folder / plan.case_id / "clinical.json").write_text(json.dumps(record))
        rows.append(f"{plan.case_id},{plan.patient.patient_id},{CLASSES[int(plan.patient.bad)]}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder


def train_once(
    out: Path, replicate: int, name: str, settings: list[str], text: Path | None, *, only_records: bool
) -> dict[str, Any]:
    """Train one variant on one replicate's cohort and evaluate it on the external one."""
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.config.overrides import override
    from tmi.toolkit.config.presets import tiny
    from tmi.toolkit.run_folder import FoldFolder, FoldSplit
    from tmi.training.data.splits import make_folds
    from tmi.training.loop.fold_training import train_fold
    from tmi.training.loop.hardware import HardwareConfig
    from tmi.training.loop.run_spec import FoldContext
    from tmi.training.pretrained.initial_weights import prepare_initialization

    schema = load_schema(None)
    base = ['network.modalities=["clinical"]'] if only_records else []
    config = override(tiny(), ["ct.shape_DHW=[16,32,32]", *base, *settings])
    config = replace(config, train=replace(config.train, seed=config.train.seed + replicate))
    initialization = None
    if name.startswith("text"):
        initialization = prepare_initialization(config, ct=None, text=text, schema=schema)
        config = initialization.config
    write = records if only_records else cohort
    own = prepare(write(out / f"cohort{replicate}", CASES, FIRST_SEED + replicate), config, schema)
    other = prepare(write(out / "external", EXTERNAL_CASES, EXTERNAL_SEED), config, schema)
    (split, *_) = make_folds(own.cases, replace(config.train, folds=5))
    # the held-out fifth joins the training: the external cohort is held out
    inner = FoldSplit(fold=0, train=(*split.train, *split.test), validation=split.validation,
                      test=tuple(c.case_id for c in other.cases))  # fmt: skip
    folder = out / "fold"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = FoldFolder(folder=folder, fold=0)
    context = FoldContext(arrays=concatenate(own, other), config=config,
                          tokenizer=None if initialization is None else initialization.tokenizer,
                          initial=None if initialization is None else initialization.weights,
                          hardware=HardwareConfig(accelerator="cpu"))  # fmt: skip
    start = perf_counter()
    train_fold(context, inner, files, epoch_callback=lambda *_: None)
    metrics = json.loads(files.metrics.read_text())
    return {"replicate": replicate, "variant": name, "settings": settings, "auc": metrics["test"]["roc_auc"],
            "epoch": metrics["picked_epoch"], "seconds": round(perf_counter() - start, 1)}  # fmt: skip


def table(results: list[dict[str, Any]]) -> list[str]:
    """Rows of the table: variant, trials, mean AUC, paired difference and its interval."""
    auc = {(r["variant"], r["replicate"]): r["auc"] for r in results}
    lines = ["| variant | trials | mean AUC | difference from `plain` [95% interval] |", "| --- | --- | --- | --- |"]
    for name in dict.fromkeys(r["variant"] for r in results):
        replicates = sorted(k for v, k in auc if v == name)
        differences = np.array([auc[name, k] - auc[PLAIN, k] for k in replicates if (PLAIN, k) in auc])
        text = ""
        if name != PLAIN and len(differences) > 1:
            half = student.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
            text = f"{differences.mean():+.3f} [{differences.mean() - half:+.3f}, {differences.mean() + half:+.3f}]"
        mean = np.mean([auc[name, k] for k in replicates])
        lines.append(f"| `{name}` | {len(replicates)} | {mean:.3f} | {text} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", action="append", default=[], help="NAME=SETTING,SETTING,...; repeatable")
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--text", type=Path, default=None, help="folder of tmi pretrain-text")
    parser.add_argument("--records", action="store_true", help="clinical records alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    variants = {PLAIN: []} | {
        name: [s for s in split_settings(settings) if s]
        for name, _, settings in (v.partition("=") for v in options.variant)
    }
    for replicate in range(options.replicates):
        for name, settings in variants.items():
            if any((r["replicate"], r["variant"]) == (replicate, name) for r in results):
                continue
            results.append(train_once(options.out, replicate, name, settings, options.text,
                                      only_records=options.records))  # fmt: skip
            with file.open("a") as stream:
                stream.write(json.dumps(results[-1]) + "\n")
            print(json.dumps(results[-1]), flush=True)
    print(*table(results), sep="\n")


def split_settings(settings: str) -> list[str]:
    """Split at the commas that begin a new `section.key=`."""
    return re.split(r",(?=[a-z]+\.)", settings)


if __name__ == "__main__":
    main()
