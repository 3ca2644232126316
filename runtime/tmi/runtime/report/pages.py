"""HTML pages of `tmi report`: one for each case and an index, each a single file without external addresses.

Jinja escapes everything from a case or a bundle. A content security policy in the pages forbids every connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.contents import bundled_schema
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.explanation.results import feature_class, image_type, strongest_fields, sum_by_group, top_features
from tmi.runtime.report.contributions import common_scale, noise_floor, split_by_noise
from tmi.runtime.report.trust import (
    NBSP,
    digits_needed,
    format_threshold,
    issues_of_page,
    signed,
    trust_statements,
    unbroken,
)
from tmi.runtime.serving.results import RESEARCH_USE, CaseResult, Prediction, alerts
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import sentences
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.terminal_text import printable

if TYPE_CHECKING:
    from tmi.runtime.explanation.case_explanation import CaseExplanation  # torch

CASES = "cases"
"""Folder of the case pages, next to `index.html`."""
TEMPLATES = ("case.html", "index.html", "style.css", "case.js", "index.js")
SHOWN_FIELDS = 20
"""Largest number of clinical fields that are shown without a click."""


def case_page(
    prediction: Prediction,
    explained: CaseExplanation | None,
    findings: Sequence[Issue],
    *,
    case: Case,
    bundle: Bundle,
    engine: EngineRecord,
    created: str,
    version: str,
    record: dict[str, Any] | None = None,
) -> str:
    """HTML page of one case.

    Args:
        prediction: prediction of the case.
        explained: explanation by the weights of the same bundle; None for a page without map and contributions.
        findings: findings of `tmi check`; warnings only, because the case was predicted.
        case: the case, whose clinical values are listed.
        bundle: bundle of the prediction.
        engine: engine of the prediction.
        created: UTC time, ISO 8601.
        version: version of this package.
        record: JSON values that the page carries for `tmi report --resume`.
    """
    manifest = bundle.manifest
    positive, threshold = manifest.classes[manifest.positive], manifest.threshold
    folds = [fold.probability[positive] for fold in prediction.folds]
    digits = digits_needed(threshold, [prediction.probability[positive], *folds])
    rows = evidence(manifest, engine.name)
    trained, values = trained_on(manifest), _clinical_values(case, bundle)
    return (
        _environment()
        .get_template("case.html")
        .render(
            notice=RESEARCH_USE,
            prediction=prediction,
            alerts=[notice for _, notice in alerts([prediction])],
            positive=positive,
            threshold=threshold,
            threshold_text=format_threshold(threshold, digits),
            digits=digits,
            trained=trained,
            trust=trust_statements(
                prediction,
                findings,
                positive=positive,
                threshold=threshold,
                trained=trained,
                parity=next((row for row in rows if row["used"]), None),
            ),
            issues=issues_of_page(prediction, findings),
            evidence=rows,
            digest=bundle.digest,
            manifest=manifest,
            engine=engine,
            created=created,
            version=version,
            record=record,
            values=values,
            **({"explanation": None, "ramp": "#000, #fff"} if explained is None else _explained(explained, values)),
        )
    )


def _explained(explained: CaseExplanation, values: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Variables of the map and of the contributions, whose bars have one scale."""
    from matplotlib.colors import to_hex

    from tmi.runtime.explanation.case_explanation import TOP_FEATURES  # torch
    from tmi.runtime.explanation.overlay import Picture, legend_colours
    from tmi.runtime.report.slices import montage, page_slices

    anatomy, explanation = explained.anatomy, explained.explanation
    picture = Picture(
        ct=anatomy.ct, map_DHW=explained.map_DHW, liver_DHW=anatomy.liver_DHW, title=f"case {explanation.case_id}"
    )
    planes = page_slices(picture, anatomy.centre_DHW)
    fields = strongest_fields(explanation.fields)
    features = top_features(explanation.radiomics_R, TOP_FEATURES)
    groups = {
        title: sum_by_group(explanation.radiomics_R, group)
        for title, group in (("Feature class", feature_class), ("Image type", image_type))
    }
    sums = [entry["sum"] for group in groups.values() for entry in group.values()]
    scale = common_scale([*(v for _, v in fields), *(v for _, v in features), *sums], noise_floor(explanation))
    unknown = ("Free-text report", "(not shown)")
    legend = legend_colours()(np.linspace(0.0, 1.0, 9))
    return {
        "explanation": explanation,
        "localization": explained.localization,
        "planes": planes,
        "slices": {plane.name: asdict(plane) for plane in planes},
        "montage": montage(picture, anatomy.centre_DHW),
        "ramp": ", ".join(to_hex(colour) for colour in legend),
        "scale": scale,
        "fields": split_by_noise(
            [scale.bar(*values.get(name, unknown), value) for name, value in fields], SHOWN_FIELDS
        ),
        "features": split_by_noise([scale.bar(name, "", value) for name, value in features], TOP_FEATURES),
        "groups": {
            title: [scale.bar(name, f"{entry['magnitude']:.3f}", entry["sum"]) for name, entry in group.items()]
            for title, group in groups.items()
        },
    }


def index_page(results: Sequence[CaseResult], *, bundle: Bundle, created: str, version: str) -> str:
    """HTML page of the cohort: one row for each case, rejected ones included."""
    rows = [
        {
            "result": result,
            "predicted": isinstance(result, Prediction),
            "link": f"{CASES}/{quote(result.case_id)}.html",
        }
        for result in results
    ]
    positive, threshold = bundle.manifest.classes[bundle.manifest.positive], bundle.manifest.threshold
    predicted = [r.probability[positive] for r in results if isinstance(r, Prediction)]
    digits = digits_needed(threshold, predicted)
    return (
        _environment()
        .get_template("index.html")
        .render(
            notice=RESEARCH_USE,
            rows=rows,
            alerts=alerts(results),
            predicted=len(predicted),
            positive=positive,
            threshold_text=format_threshold(threshold, digits),
            digits=digits,
            trained=trained_on(bundle.manifest),
            digest=bundle.digest,
            created=created,
            version=version,
        )
    )


def trained_on(manifest: Manifest) -> dict[str, Any]:
    """Training data of the bundle's models: number of cases, and the AUC on held-out cases if recorded."""
    summary = manifest.run.summary
    auc = None if summary is None else summary.over_folds.get("roc_auc")
    return {
        "synthetic": manifest.synthetic,
        "cases": manifest.run.cohort.cases,
        "auc": None if auc is None else auc.mean,
        "auc_sd": None if auc is None else auc.std,
        "temperatures": [f"{t:.2f}" for t in manifest.temperatures if t != 1],
    }


WHOLE_PIPELINE_CHECKS = {False: "preprocessing", True: "logits"}
"""Check that the evidence table quotes: of the files (no engine) and of an engine."""


def evidence(manifest: Manifest, engine: str) -> list[dict[str, Any]]:
    """Parity checks by engine (None: the files), with the worst record of the check that covers the whole pipeline.

    An engine's is `logits`, the ensemble's logits against eager float32; that of the files is `preprocessing`.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(record.engine for record in manifest.parity):
        records = [r for r in manifest.parity if r.engine == name]
        check = WHOLE_PIPELINE_CHECKS[name is not None]
        quoted = [r for r in records if (r.check, r.graph) == (check, "pipeline") and r.measured is not None]
        worst = max(quoted, key=_use_of_bound, default=None)
        rows.append(
            {
                "engine": name or "audit of the files",
                "used": name == engine,
                "checks": len(records),
                "passed": sum(r.passed for r in records),
                "check": None if worst is None else worst.check,
                "measured": None if worst is None else worst.measured,
                "bound": None if worst is None else worst.bound,
            }
        )
    return rows


def _use_of_bound(record: CheckResult) -> tuple[bool, float, float]:
    """Sort key of records: a failed one is worst, then the one that uses most of its bound, then the largest bound."""
    measured, bound = record.measured or 0.0, record.bound or 0.0
    return not record.passed, measured / bound if bound > 0 else 0.0, bound


def _clinical_values(case: Case, bundle: Bundle) -> dict[str, tuple[str, str]]:
    """Field -> label and value with unit, in the order of the record; the text of a report is not shown."""
    schema, rendering = bundled_schema(bundle), bundle.manifest.config.clinical.rendering
    labels = {f.name: f.label for f in schema.fields}
    texts = sentences(read_clinical(case, schema), schema, "values" if rendering == "compact" else rendering)
    values = {
        name: sentence.removeprefix(f"{labels[name]}: ").removesuffix(".")
        for name, sentence in texts
        if name is not None
    }
    return {name: (labels[name], _unbroken_value(value)) for name, value in values.items()}


def _unbroken_value(value: str) -> str:
    """Return a value whose number and unit stay on one line."""
    return value.replace(" ", NBSP) if value[:1].isdigit() else value


def _environment() -> Environment:
    folder = files("tmi.runtime.report") / "data"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8") if name in TEMPLATES else None),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        finalize=lambda value: unbroken(printable(value, lines=True)) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "unknown" if value is None else f"{100 * value:.0f}{NBSP}%"
    environment.filters["signed"] = signed
    environment.filters["digits"] = lambda value, digits: f"{value:.{digits}f}"
    return environment
