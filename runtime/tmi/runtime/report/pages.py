"""HTML pages of `tmi report`: one for each case and an index, each a single file without external addresses.

Jinja escapes everything from a case or a bundle. A content security policy in the pages forbids every connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.explain.case_explanation import TOP_FEATURES, CaseExplanation
from tmi.runtime.explain.overlay import Picture
from tmi.runtime.explain.results import (
    REPORT_FIELD,
    feature_class,
    image_type,
    strongest_fields,
    sum_by_group,
    top_features,
)
from tmi.runtime.report.slices import montage, page_slices
from tmi.runtime.serving.results import RESEARCH_USE, CaseResult, Prediction, alerts
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import sentences
from tmi.toolkit.qc.case_checks import Finding
from tmi.toolkit.storage.terminal_text import printable

CASES = "cases"
"""Folder of the case pages, next to `index.html`."""
TEMPLATES = ("case.html", "index.html", "style.css", "case.js", "index.js")


def case_page(
    prediction: Prediction,
    explained: CaseExplanation,
    findings: Sequence[Finding],
    *,
    bundle: Bundle,
    engine: EngineRecord,
    created: str,
    version: str,
) -> str:
    """HTML page of one case.

    Args:
        prediction: prediction of the case.
        explained: explanation by the weights of the same bundle.
        findings: findings of `tmi check`; warnings only, because the case was predicted.
        bundle: bundle of the prediction.
        engine: engine of the prediction.
        created: UTC time, ISO 8601.
        version: version of this package.
    """
    anatomy, explanation = explained.anatomy, explained.explanation
    picture = Picture(
        ct=anatomy.ct, map_DHW=explained.map_DHW, liver_DHW=anatomy.liver_DHW, title=f"case {prediction.case_id}"
    )
    planes = page_slices(picture, anatomy.centre_DHW)
    return (
        _environment()
        .get_template("case.html")
        .render(
            notice=RESEARCH_USE,
            prediction=prediction,
            alerts=[notice for _, notice in alerts([prediction])],
            positive=bundle.manifest.classes[bundle.manifest.positive],
            threshold=bundle.manifest.threshold,
            trained=trained_on(bundle.manifest),
            explanation=explanation,
            localization=explained.localization,
            planes=planes,
            slices={plane.name: asdict(plane) for plane in planes},
            montage=montage(picture, anatomy.centre_DHW),
            fields=_bars(_clinical_rows(explained)),
            features=_bars([(name, "", value) for name, value in top_features(explanation.radiomics_R, TOP_FEATURES)]),
            classes=sum_by_group(explanation.radiomics_R, feature_class),
            image_types=sum_by_group(explanation.radiomics_R, image_type),
            findings=findings,
            evidence=evidence(bundle.manifest, engine.name),
            digest=bundle.digest,
            manifest=bundle.manifest,
            engine=engine,
            created=created,
            version=version,
        )
    )


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
    return (
        _environment()
        .get_template("index.html")
        .render(
            notice=RESEARCH_USE,
            rows=rows,
            alerts=alerts(results),
            predicted=sum(bool(row["predicted"]) for row in rows),
            positive=bundle.manifest.classes[bundle.manifest.positive],
            threshold=bundle.manifest.threshold,
            trained=trained_on(bundle.manifest),
            digest=bundle.digest,
            created=created,
            version=version,
        )
    )


def trained_on(manifest: Manifest) -> dict[str, Any]:
    """Training data of the bundle's models: number of cases, and the AUC on held-out cases if recorded."""
    over_folds = manifest.run.get("summary", {}).get("over_folds", {})
    auc = over_folds.get("roc_auc", {}) if isinstance(over_folds, dict) else {}
    return {
        "synthetic": manifest.synthetic,
        "cases": manifest.run.get("cohort", {}).get("cases"),
        "auc": auc.get("mean"),
        "auc_sd": auc.get("std"),
        "temperatures": [f"{t:.2f}" for t in manifest.extra.get("temperatures", []) if t != 1],
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
        gate = WHOLE_PIPELINE_CHECKS[name is not None]
        quoted = [r for r in records if (r.gate, r.graph) == (gate, "pipeline") and r.measured is not None]
        worst = max(quoted, key=_use_of_bound, default=None)
        rows.append(
            {
                "engine": name or "audit of the files",
                "used": name == engine,
                "checks": len(records),
                "passed": sum(r.passed for r in records),
                "check": None if worst is None else worst.gate,
                "measured": None if worst is None else worst.measured,
                "bound": None if worst is None else worst.bound,
            }
        )
    return rows


def _use_of_bound(record: CheckResult) -> tuple[bool, float, float]:
    """Sort key of records: a failed one is worst, then the one that uses most of its bound, then the largest bound."""
    measured, bound = record.measured or 0.0, record.bound or 0.0
    return not record.passed, measured / bound if bound > 0 else 0.0, bound


def _clinical_rows(explained: CaseExplanation) -> list[tuple[str, str, float]]:
    """Label, value with unit, attribution; the text of a report is not shown."""
    source = explained.source
    record = read_clinical(explained.case, source.schema)
    labels = {f.name: f.label for f in source.schema.fields}
    rendering = source.config.clinical.rendering
    values = {
        name: sentence.removeprefix(f"{labels[name]}: ").removesuffix(".")
        for name, sentence in sentences(record, source.schema, "values" if rendering == "compact" else rendering)
        if name is not None
    }
    return [
        ("Free-text report", "(not shown)", value)
        if name == REPORT_FIELD and name not in labels
        else (labels[name], values[name], value)
        for name, value in strongest_fields(explained.explanation.fields)
    ]


def _bars(rows: Sequence[tuple[str, str, float]]) -> list[dict[str, Any]]:
    """Rows with the length of their bar, in percent of the largest."""
    largest = max((abs(value) for *_, value in rows), default=0.0)
    return [
        {
            "name": name,
            "text": text,
            "value": value,
            "side": "bad" if value > 0 else "good" if value < 0 else "neither",
            "length": round(100.0 * abs(value) / largest, 1) if largest else 0.0,
        }
        for name, text, value in rows
    ]


def _environment() -> Environment:
    folder = files("tmi.runtime.report") / "data"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8") if name in TEMPLATES else None),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        finalize=lambda value: printable(value, lines=True) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "unknown" if value is None else f"{100 * value:.0f} %"
    environment.filters["signed"] = lambda value: f"{value:+.4f}"
    return environment
