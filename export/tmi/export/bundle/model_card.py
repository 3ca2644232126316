"""`MODEL_CARD.md`: what a bundle is for, whom it was trained on in numbers, how good it is, and where it ends.

Written from run and manifest alone, in the form that model hubs read (YAML front matter, then Markdown). No patient
data: counts of cases only, and a count below `MIN_REPORTED_CASES` is not told.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import Manifest
from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.run_folder import RunFolder

MIN_REPORTED_CASES = 5
"""Counts below this could point to a person and are suppressed."""
TITLES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "Balanced accuracy",
}
"""Figure of the run's summary -> how it is printed; others are printed by their own name."""
ENGINE_GATES = ("features", "logits", "probabilities", "float64")
"""Gates whose figures the table shows, the worst graph of each."""


def class_counts(run: RunFolder) -> dict[str, int]:
    """Held-out cases by class, over all folds: from the labels beside the out-of-fold predictions."""
    counts: Counter[str] = Counter()
    for split in run.folds:
        with run.fold(split.fold).predictions.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                label = row["label"]
                counts[CLASSES[int(label)] if label.isdigit() and int(label) < len(CLASSES) else label] += 1
    return dict(counts)


def releasable_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """What a bundle may tell of them: all, or none where one is small, since it could be had from the total."""
    return dict(counts) if counts and min(counts.values()) >= MIN_REPORTED_CASES else {}


def model_card(manifest: Manifest) -> str:
    """The card's text."""
    parts = [_front_matter(manifest), _purpose(manifest), _cohort(manifest), _metrics(manifest),
             _parity(manifest), _limits(manifest), _use(manifest)]  # fmt: skip
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _front_matter(manifest: Manifest) -> Iterator[str]:
    yield "---"
    yield "library_name: tmi-clnet"
    yield "pipeline_tag: other"
    yield "tags:"
    for tag in ("medical", "computed-tomography", "liver", "prognosis", "multimodal", "research-use-only"):
        yield f"- {tag}"
    if manifest.synthetic:
        yield "- synthetic-data"
    yield f"model_name: {json.dumps(str(manifest.run.get('name', 'model')))}"  # a JSON string is a YAML string
    yield "---"
    yield ""


def _purpose(manifest: Manifest) -> Iterator[str]:
    yield f"# {' '.join(str(manifest.run.get('name', 'model')).split())}"
    yield ""
    if manifest.synthetic:
        yield "> **Synthetic.** The cohort was made by a program. The figures below say nothing about patients."
        yield ""
    config = manifest.parsed_config()
    yield (
        f"{len(manifest.folds)} fold models of the system `{config.system.name}`, which sees "
        f"{_modalities_text(manifest, image='the CT volume', radiomics=f'{config.radiomics.scaling}-scaled radiomics')}, preset "
        f"`{manifest.preset}`; the ensemble's answer is the mean of the folds' probabilities."
    )
    yield ""
    yield "## Intended use"
    yield ""
    positive = manifest.classes[manifest.positive]
    yield (
        f"Research on liver prognosis: the probability of `{positive}` prognosis from "
        f"{_modalities_text(manifest, image='a portal-venous abdominal CT', radiomics='liver radiomics')}; the decision is "
        f"`{positive}` from {manifest.threshold:g} on."
    )
    yield ""
    yield "**For research use only: not a medical device, not for diagnosis or treatment.**"
    yield ""


def _modalities_text(manifest: Manifest, *, image: str, radiomics: str) -> str:
    """What the network sees, as an enumeration."""
    words = {"image": image, "radiomics": radiomics, "clinical": "a clinical record as text"}
    told = [text for modality, text in words.items() if modality in manifest.modalities]
    return " and ".join(part for part in (", ".join(told[:-1]), told[-1]) if part)


def _cohort(manifest: Manifest) -> Iterator[str]:
    cohort: Mapping[str, Any] = manifest.run.get("cohort", {})
    total = cohort.get("cases")
    yield "## Training cohort"
    yield ""
    yield f"- cases: {_count(total)}, in {len(manifest.folds)} folds, each held out once"
    counts: Mapping[str, int] = manifest.run.get("class_counts", {})
    if counts:
        yield f"- by class: {', '.join(f'{name} {counts[name]}' for name in sorted(counts))}"
    else:
        yield f"- by class: not told, a class has fewer than {MIN_REPORTED_CASES} cases"
    refused = cohort.get("refused")
    if isinstance(refused, int):
        yield f"- refused by the checks and left out: {_count(refused) if refused else 'none'}"
    if fingerprint := cohort.get("fingerprint"):
        yield f"- fingerprint: `{fingerprint}`"
    yield f"- synthetic: {'yes' if manifest.synthetic else 'no'}"
    yield ""


def _metrics(manifest: Manifest) -> Iterator[str]:
    summary: Mapping[str, Any] = manifest.run.get("summary", {})
    figures = summary.get("over_folds")
    yield "## Figures on held-out cases"
    yield ""
    if not isinstance(figures, dict):
        yield "The run records none."
        yield ""
        return
    yield "| figure | mean ± SD | folds |"
    yield "| --- | --- | --- |"
    for name, entry in figures.items():
        mean, deviation = entry.get("mean"), entry.get("std")
        value = "n/a" if mean is None else f"{mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
        yield f"| {TITLES.get(name, name)} | {value} | {entry.get('folds', '')} |"
    yield ""
    yield "SD: sample standard deviation over the folds. n/a: not defined, a fold's held-out part has one class only."
    yield ""
    for note in summary.get("notes", []):
        yield f"> {note}"
        yield ""


def _parity(manifest: Manifest) -> Iterator[str]:
    yield "## Parity with the validated model"
    yield ""
    yield (
        "Every engine was judged against the eager float32 model on the golden inputs; all gates held, or this bundle "
        "would not exist. Largest error of any graph, relative but for probabilities, and in brackets what is allowed:"
    )
    yield ""
    yield f"| engine | gates | {' | '.join(ENGINE_GATES)} | times float32's own error |"
    yield f"|{' --- |' * (len(ENGINE_GATES) + 3)}"
    for engine in dict.fromkeys(r.engine for r in manifest.parity if r.engine):
        mine = [r for r in manifest.parity if r.engine == engine]
        multiples = [r.multiple for r in mine if r.multiple is not None]
        cells = [_worst([r for r in mine if r.gate == gate]) for gate in ENGINE_GATES]
        times = f"{max(multiples):.2g}" if multiples else "not measured"
        yield f"| {engine} | {len(mine)} | {' | '.join(cells)} | {times} |"
    for name, why in manifest.extra.get("engines_not_judged", {}).items():
        yield f"| {name} | {why} |{' - |' * (len(ENGINE_GATES) + 1)}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    yield f"Exported {manifest.created} with {versions}, on {manifest.extra.get('hardware', {}).get('cpu', 'a CPU')}."
    yield ""


def _worst(records: list[CheckResult]) -> str:
    measured = [r for r in records if r.measured is not None]
    if not measured:
        return "-"
    worst = max(measured, key=lambda r: r.measured or 0.0)
    return f"{worst.measured:.1e} ({worst.bound:.1e})"


def _limits(manifest: Manifest) -> Iterator[str]:
    config = manifest.parsed_config()
    low, high = config.ct.window_hu
    depth, height, width = config.ct.shape_DHW
    yield "## Limits"
    yield ""
    yield "- Trained and evaluated on one cohort; nothing is known of other hospitals, scanners or populations."
    if manifest.uses("image"):
        yield f"- The CT is cut to {low:g} to {high:g} HU and resampled to {depth} x {height} x {width} voxels."
    if manifest.uses("clinical"):
        yield f"- Clinical text beyond {config.clinical.max_length} tokens is cut, and the answer says so."
    if manifest.uses("radiomics"):
        yield "- Missing radiomics are imputed and values outside the training range clipped; the answer counts both."
    yield f"- {_calibration(manifest)}; the spread between the folds is no confidence interval."
    yield "- Parity says that the engines answer like the trained model, not that the model is right."
    yield ""


def _calibration(manifest: Manifest) -> str:
    temperatures = manifest.extra.get("temperatures", [])
    if all(t == 1 for t in temperatures):
        return "The probabilities are not calibrated"
    told = ", ".join(f"{t:.3g}" for t in temperatures)
    return f"The folds' logits are divided by temperatures fitted on their inner validation splits ({told})"


def _use(manifest: Manifest) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```"
    yield "pip install tmi-clnet"
    yield "tmi verify BUNDLE"
    yield "tmi predict CASE --bundle BUNDLE"
    yield "```"


def _count(value: Any) -> str:
    if not isinstance(value, int):
        return "not recorded"
    return f"fewer than {MIN_REPORTED_CASES}" if value < MIN_REPORTED_CASES else str(value)
