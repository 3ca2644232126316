"""The four tables of the paper, with the metrics printed there, and two tables of our own: rows and their settings.

Source: L. Wu et al., TMI-CLNet, tables 1 to 4. The paper prints ACC, precision and recall in percent; here all metrics
are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tmi.toolkit.clinical.rendering import Rendering
from tmi.toolkit.model_registry import REFERENCE_MODEL

PAPER_METRICS: tuple[str, ...] = ("accuracy", "precision", "recall", "f1", "roc_auc")
"""Metrics of the paper's columns, named as in `tmi.training.evaluation.metrics`; the paper calls the last one AUC."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    key: str
    """Key of the row; also the name of its run."""
    label: str
    """Name of the row as printed in the paper."""
    settings: tuple[str, ...] = ()
    """Differences from the base config of the comparison, in the syntax of `--set`."""
    paper: tuple[float, float, float, float, float] | None
    """Metrics in the paper, in the order of `PAPER_METRICS`; None if the paper has no such row."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of rows."""

    number: int | str
    """Number in the paper; `clinical` or `baselines` for a table that the paper does not have."""
    title: str
    """Short caption."""
    rows: tuple[Row, ...]
    """Rows in order."""

    @property
    def heading(self) -> str:
        """Heading of the table's section."""
        return f"Table {self.number}: {self.title}" if isinstance(self.number, int) else self.title


def _system(name: str, label: str, *paper: float) -> Row:
    return _row(name, label, (f"system.name={name}",), *paper)


def _row(key: str, label: str, settings: tuple[str, ...], *paper: float) -> Row:
    accuracy, precision, recall, f1, auc = paper
    return Row(
        key=key,
        label=label,
        settings=settings,
        paper=(accuracy / 100, precision / 100, recall / 100, f1, auc),
    )


def _modalities(key: str, label: str, *paper: float) -> Row:
    named = ", ".join(f'"{m}"' for m in key.split("-"))
    return _row(key, label, (f"network.modalities=[{named}]",), *paper)


def _modules(key: str, ima: bool, tcaf: bool, *paper: float) -> Row:
    label = f"IMA {'✓' if ima else '–'}, TCAF {'✓' if tcaf else '–'}"
    settings = (f"network.fusion.ima={str(ima).lower()}", f"network.fusion.tcaf={str(tcaf).lower()}")
    return _row(key, label, settings, *paper)


def _lambda(value: float, *paper: float) -> Row:
    return _row(f"lambda-{value}", f"λ = {value}", (f"loss.tmff_lambda={value}",), *paper)


FULL_MODEL_METRICS = (83.12, 84.38, 74.28, 0.7805, 0.8223)

TABLES: Mapping[int, Table] = MappingProxyType(
    {
        1: Table(
            number=1,
            title="Comparison with other methods",
            rows=(
                _system("resnet50", "ResNet-50", 76.67, 80.69, 58.36, 0.6718, 0.7354),
                _system("vit", "ViT", 63.33, 58.81, 29.75, 0.3270, 0.5933),
                _system("svm", "SVM", 57.01, 47.72, 39.34, 0.4289, 0.5718),
                _system("rf", "RF", 66.22, 61.82, 49.98, 0.5485, 0.6828),
                _system("simpleff", "SimpleFF", 72.75, 74.72, 54.10, 0.6218, 0.7050),
                _system("hfbsurv", "HFBSurv", 79.45, 82.01, 64.32, 0.7233, 0.8015),
                _system("mmd", "MMD", 77.22, 81.25, 60.63, 0.6772, 0.7344),
                _row(REFERENCE_MODEL, "TMI-CLNet", (), *FULL_MODEL_METRICS),
            ),
        ),
        2: Table(
            number=2,
            title="Ablation of the modalities",
            rows=(
                _modalities("image", "Vision-Only", 77.68, 78.53, 64.98, 0.6983, 0.7541),
                _modalities("clinical", "Text-Only", 73.33, 74.91, 54.21, 0.6199, 0.7001),
                _modalities("radiomics", "Radio-Only", 72.79, 69.68, 61.91, 0.6459, 0.7123),
                _modalities("clinical-image", "Vision+Text", 76.64, 71.43, 68.75, 0.6276, 0.7224),
                _modalities("clinical-radiomics", "Radio+Text", 77.16, 82.51, 58.62, 0.6707, 0.7409),
                _modalities("radiomics-image", "Vision+Radio", 74.94, 78.77, 56.95, 0.6341, 0.7218),
                _row(REFERENCE_MODEL, "TMI-CLNet", (), *FULL_MODEL_METRICS),
            ),
        ),
        3: Table(
            number=3,
            title="Ablation of IMA and TCAF",
            rows=(
                _modules("no-ima-no-tcaf", False, False, 75.48, 75.12, 63.34, 0.6504, 0.6952),
                _modules("no-ima", False, True, 78.89, 82.79, 62.92, 0.7019, 0.7686),
                _modules("no-tcaf", True, False, 81.47, 83.94, 68.55, 0.7491, 0.7883),
                _modules("ima-tcaf", True, True, *FULL_MODEL_METRICS),
            ),
        ),
        4: Table(
            number=4,
            title="Ablation of λ in the TMFF loss",
            rows=(
                _row("no-tmff", "no TMFF", ("loss.alpha=0",), 76.61, 73.42, 68.36, 0.7050, 0.7536),
                _lambda(0.2, 80.95, 79.66, 75.13, 0.7636, 0.8017),
                _lambda(0.4, 78.21, 76.93, 67.33, 0.7141, 0.7668),
                _lambda(0.6, *FULL_MODEL_METRICS),
                _lambda(0.8, 79.85, 87.31, 59.78, 0.7028, 0.7659),
            ),
        ),
    }
)
"""Number -> the table."""

CLINICAL = Table(
    number="clinical",
    title="Clinical record alone: text encoder against models on numeric values",
    rows=(
        Row(key=REFERENCE_MODEL, label="text, rendering `values`", paper=None),
        Row(key="flags", label="text, rendering `flags`", settings=("clinical.rendering=flags",), paper=None),
        Row(
            key="no-dropout",
            label="text, `values`, no dropout",
            settings=("network.text_encoder.dropout=0",),
            paper=None,
        ),
        Row(
            key="flags-no-dropout",
            label="text, `flags`, no dropout",
            settings=("clinical.rendering=flags", "network.text_encoder.dropout=0"),
            paper=None,
        ),
        Row(key="logreg", label="logistic regression", settings=("system.name=logreg",), paper=None),
        Row(key="clinical-rf", label="random forest", settings=("system.name=clinical-rf",), paper=None),
    ),
)
"""Table for cohorts of clinical records: the text encoder against baselines that use the same values as numbers."""
CLINICAL_OVERRIDES = ('network.modalities=["clinical"]', "clinical.rendering=values")
"""Base settings of every row of `CLINICAL`: TMI-CLNet with its text encoder alone."""
CLINICAL_RENDERINGS: tuple[Rendering, ...] = ("values", "flags")
"""Renderings of the rows of `CLINICAL`."""

BASELINES = Table(
    number="baselines",
    title="TMI-CLNet against simple models of the same cases",
    rows=(
        Row(key=REFERENCE_MODEL, label="TMI-CLNet", paper=None),
        Row(
            key="late-fusion",
            label="late fusion: logistic regression and forest",
            settings=("system.name=late-fusion",),
            paper=None,
        ),
        Row(
            key="boosting",
            label="gradient boosting, clinical + radiomics",
            settings=("system.name=boosting",),
            paper=None,
        ),
        Row(key="logreg", label="logistic regression, clinical", settings=("system.name=logreg",), paper=None),
        Row(key="clinical-rf", label="random forest, clinical", settings=("system.name=clinical-rf",), paper=None),
        Row(key="rf", label="random forest, radiomics", settings=("system.name=rf",), paper=None),
        Row(key="svm", label="support vector machine, radiomics", settings=("system.name=svm",), paper=None),
    ),
)
"""Table of the simple models that a reviewer would ask for; the paper has no such table."""
OWN_TABLES: Mapping[str, Table] = MappingProxyType({str(t.number): t for t in (CLINICAL, BASELINES)})
"""Tables that the paper does not have, by name."""
