"""Explain one case from its folder, and convert the result to the document `tmi-explanation/3`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.runtime.explanation.anatomy import Anatomy, read_anatomy
from tmi.runtime.explanation.explainer import Explainer, torch_threads
from tmi.runtime.explanation.insertion_deletion import PerturbationCurves
from tmi.runtime.explanation.localization import LocalizationMetrics
from tmi.runtime.explanation.memory_fit import require_explanation_memory
from tmi.runtime.explanation.model_source import ModelSource, bundle_models
from tmi.runtime.explanation.parameter_randomization import RandomizationStep
from tmi.runtime.explanation.results import (
    SCHEMA,
    Explanation,
    feature_class,
    image_type,
    strongest_fields,
    sum_by_group,
    top_features,
)
from tmi.runtime.serving.results import ALERTS, RESEARCH_USE
from tmi.toolkit.cases.case import Case, MaskLabel, reading
from tmi.toolkit.cases.loaded import load_case
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.run_folder import select_folds

TOP_FEATURES = 20
"""Number of radiomic features that are shown."""


@dataclass(frozen=True, kw_only=True)
class CaseExplanation:
    """Explanation of one case by the models of one source, with its metrics."""

    case: Case
    """The explained case."""
    source: ModelSource
    """Run or bundle whose models are explained."""
    anatomy: Anatomy
    """CT and masks of the case."""
    explanation: Explanation
    """Maps and attributions."""
    map_DHW: Float[np.ndarray, "D H W"]
    """The map on the CT's own canonical grid."""
    localization: LocalizationMetrics
    """Localization metrics of the map."""
    curves: PerturbationCurves | None
    """Insertion and deletion curves; None if not requested."""
    randomised: tuple[RandomizationStep, ...]
    """Parameter randomization test; empty if not requested."""

    @property
    def warnings(self) -> tuple[Issue, ...]:
        """Alerts, then warnings and notes, as `tmi predict` reports them."""
        return self.explanation.notices

    def __repr__(self) -> str:
        explanation, in_liver = self.explanation, self.localization.in_liver
        inside = "" if in_liver is None else f", {in_liver:.0%} of the map in the liver"
        p_bad = explanation.probability["bad"]
        return f"CaseExplanation({explanation.case_id!r}, p(bad) {p_bad:.3f}, for {explanation.target!r}{inside})"


def explain(
    case: Case | Path | str,
    bundle: Bundle | Path | str,
    *,
    fold: str = "ensemble",
    target: str | None = None,
    steps: int = 0,
    sanity: bool = False,
    mask_label: MaskLabel | None = None,
    threads: int | None = None,
    key: Keys = None,
) -> CaseExplanation:
    """Explain the prediction of one case with a bundle's models, as `tmi explain` does: map, attributions, metrics.

    Args:
        case: a case folder, a `Case`, or a loaded one (`tmi.toolkit.load_case`).
        bundle: a bundle with its eager weights, or its folder.
        fold: number of a fold, or `ensemble` for the mean of all folds.
        target: class that the map explains; None: the predicted one.
        steps: number of steps of the insertion and deletion curves; 0: no curves.
        sanity: whether to run the parameter randomization test.
        mask_label: label of the liver in the mask, or several that are joined; a `Case` has its own.
        threads: torch's threads; None leaves them as they are.
        key: public keys (PEM) of which one must have signed the bundle; None: those of `tmi.toml`, if any.

    Raises:
        InputRejectedError: the case is rejected; the error names it.
        UsageError: no such bundle or fold, or the bundle has no weights or not all three modalities.
        DamagedError: the bundle is damaged, or not signed by the key.
        ParityError: its weights do not give the outputs of the validated model.
        UnavailableError: a package is missing, or the machine has too little memory.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_trusted_bundle(Path(bundle), key)
    folds = len(select_folds(fold, [spec.fold for spec in opened.manifest.folds], of=f"bundle {opened.folder}"))
    fix = "use a machine with more memory" + (", or sanity=False" if sanity else "")
    source = bundle_models(
        opened,
        threads=threads,
        check_memory=lambda config: require_explanation_memory(config, folds=folds, sanity=sanity, fix=fix),
    )
    explainer = Explainer(source, source.select_folds(fold), target=target)
    with torch_threads(threads):
        return explain_case(load_case(case, mask_label=mask_label), explainer, steps=steps, sanity=sanity)


def explain_case(
    case: Case, explainer: Explainer, *, steps: int, sanity: bool, anatomy: Anatomy | None = None
) -> CaseExplanation:
    """Preprocess and explain one case, and compute the metrics of its map.

    Args:
        case: the case.
        explainer: explainer of the models.
        steps: number of steps of the insertion and deletion curves; 0: no curves.
        sanity: whether to run the parameter randomization test.
        anatomy: anatomy of the case, if it has been read.

    Raises:
        InputRejectedError: the case is rejected; the error names it.
        UnavailableError: radiomics must be extracted and SimpleITK or PyWavelets is not installed.
    """
    source = explainer.source
    with reading(case.case_id):
        prepared: PreparedCase = prepare_case(case, source.config, source.schema)
    explanation = explainer.explain(case, prepared)
    with reading(case.case_id):
        anatomy = anatomy or read_anatomy(case)
    map_DHW = anatomy.to_ct_grid(explanation.map_DHW, source.config.ct)
    return CaseExplanation(
        case=case,
        source=source,
        anatomy=anatomy,
        explanation=explanation,
        map_DHW=map_DHW,
        localization=anatomy.localization_metrics(map_DHW),
        curves=explainer.curves(explanation, prepared, steps=steps) if steps else None,
        randomised=explainer.randomization_test(explanation, prepared) if sanity else (),
    )


def case_document(
    explained: CaseExplanation, *, created: str, version: str, ct_only: dict[str, Any] | None = None
) -> dict[str, Any]:
    """JSON values of the document of one case.

    Args:
        explained: the explained case.
        created: UTC time, ISO 8601.
        version: version of this package.
        ct_only: document of the CT-only baseline (`ct_only_document`), if there is one.
    """
    source, explanation = explained.source, explained.explanation
    return {
        "schema": SCHEMA,
        "notice": RESEARCH_USE,
        "created": created,
        "version": version,
        "case_id": explanation.case_id,
        "alerts": [issue.to_dict() for issue in explanation.notices if issue.code in ALERTS],
        "model": {
            "kind": source.kind,
            "digest": source.digest,
            "preset": source.config.preset,
            "folds": [f.fold for f in explanation.folds],
            "synthetic": source.synthetic,
        },
        "target": explanation.target,
        "decision": explanation.decision,
        "reasons": list(explanation.reasons),
        "trust": None if explanation.trust is None else explanation.trust.to_dict(),
        "probability": dict(explanation.probability),
        "map": map_metrics(explained),
        "ct_only": ct_only,
        "radiomics": _radiomics(explanation),
        "clinical": _clinical(explanation),
        "folds": [
            {
                "fold": f.fold,
                "probability": dict(f.probability),
                "completeness": {name: dict(c) for name, c in f.completeness.items()},
                "tcaf": [asdict(arc) for arc in f.attention],
            }
            for f in explanation.folds
        ],
        "warnings": [issue.message for issue in explained.warnings],
        "issues": [issue.to_dict() for issue in explained.warnings],
        "seconds": {name: round(s, 3) for name, s in explanation.seconds.items()},
    }


def map_metrics(explained: CaseExplanation) -> dict[str, Any]:
    """JSON values of the metrics of the map."""
    curves = explained.curves
    return {
        "method": "XGrad-CAM, mean of four stages",
        "places": asdict(explained.localization),
        "curves": None
        if curves is None
        else {
            "parts": list(curves.parts),
            "deletion": list(curves.deletion),
            "insertion": list(curves.insertion),
            "deletion_auc": curves.deletion_auc,
            "insertion_auc": curves.insertion_auc,
        },
        "randomised": [asdict(r) for r in explained.randomised],
    }


def _radiomics(explanation: Explanation) -> dict[str, Any]:
    values_R = explanation.radiomics_R
    return {
        "sum": float(values_R.sum()),
        "top": [{"feature": name, "attribution": value} for name, value in top_features(values_R, TOP_FEATURES)],
        "by_class": sum_by_group(values_R, feature_class),
        "by_image_type": sum_by_group(values_R, image_type),
    }


def _clinical(explanation: Explanation) -> dict[str, Any]:
    fields = strongest_fields(explanation.fields)
    return {
        "sum": sum(value for _, value in fields),
        "fields": [{"field": name, "attribution": value} for name, value in fields],
        "cut_off": [name for name, value in explanation.fields.items() if value is None],
    }
