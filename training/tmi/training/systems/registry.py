"""Registry of the models of `tmi train --model`: TMI-CLNet, the models of the paper's Table 1, and clinical baselines.

The table imports nothing: a model's modules are imported when it is built. `docs/systems.md` documents the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.registry import MODEL_MODALITIES, active_modalities

NETWORK = "tmi.toolkit.models.factory:create_network"
CROSS_ENTROPY = "tmi.training.losses.total:task_loss"


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """One row of the registry."""

    target: str
    """`module:function` that builds the network or the scikit-learn pipeline from the config."""
    description: str
    """One-line description."""
    source: str
    """Publication, or the purpose of a baseline."""
    modalities: tuple[str, ...]
    """Modalities that the model can use."""
    backend: Literal["torch", "sklearn"]
    """Trained by gradient steps (`torch`) or by one call of `fit` (`sklearn`)."""
    loss: str = CROSS_ENTROPY
    """`module:function` of (output, labels, loss config)."""


SYSTEMS: Mapping[str, SystemSpec] = MappingProxyType(
    {
        "tmi-clnet": SystemSpec(
            target=NETWORK,
            description="CT, text and radiomics encoders, IMA, TCAF, 1D DenseNet; TMFF loss",
            source="L. Wu et al., TMI-CLNet",
            modalities=MODEL_MODALITIES["tmi-clnet"],
            backend="torch",
            loss="tmi.training.systems.objectives:tmi_clnet_loss",
        ),
        "resnet50": SystemSpec(
            target=NETWORK,
            description="2D ResNet-50 on the middle axial slice; `dims` 3: the 3D one on the volume",
            source="K. He et al. 2016",
            modalities=MODEL_MODALITIES["resnet50"],
            backend="torch",
        ),
        "vit": SystemSpec(
            target=NETWORK,
            description="vision transformer on the middle axial slice; `dims` 3: on the volume",
            source="A. Dosovitskiy et al. 2020",
            modalities=MODEL_MODALITIES["vit"],
            backend="torch",
        ),
        "svm": SystemSpec(
            target="tmi.training.systems.radiomics_pipeline:support_vector_machine",
            description="radiomics: impute, scale, drop constants, LASSO, RBF support vector machine, Platt scaling",
            source="S. Mukherjee et al. 2022",
            modalities=MODEL_MODALITIES["svm"],
            backend="sklearn",
        ),
        "rf": SystemSpec(
            target="tmi.training.systems.radiomics_pipeline:random_forest",
            description="radiomics: impute, scale, drop constants, LASSO, random forest",
            source="L. Breiman 2001",
            modalities=MODEL_MODALITIES["rf"],
            backend="sklearn",
        ),
        "simpleff": SystemSpec(
            target=NETWORK,
            description="five slices through a 2D ResNet-50 to 8 features each, with radiomics; averaged over slices",
            source="Y. S. Choi et al. 2021",
            modalities=MODEL_MODALITIES["simpleff"],
            backend="torch",
        ),
        "hfbsurv": SystemSpec(
            target=NETWORK,
            description="hierarchical factorised bilinear fusion of the three encoders' features",
            source="R. Li et al. 2022",
            modalities=MODEL_MODALITIES["hfbsurv"],
            backend="torch",
        ),
        "mmd": SystemSpec(
            target=NETWORK,
            description="mean of the embeddings present, modality dropout and reconstruction; predicts with any subset",
            source="C. Cui et al. 2022",
            modalities=MODEL_MODALITIES["mmd"],
            backend="torch",
            loss="tmi.training.systems.objectives:mmd_loss",
        ),
        "logreg": SystemSpec(
            target="tmi.training.systems.clinical_pipeline:logistic_regression",
            description="clinical values as numbers: impute, scale, drop constants, L2-penalised logistic regression",
            source="a baseline for the text encoder",
            modalities=MODEL_MODALITIES["logreg"],
            backend="sklearn",
        ),
        "clinical-rf": SystemSpec(
            target="tmi.training.systems.clinical_pipeline:random_forest",
            description="clinical values as numbers: impute, scale, drop constants, random forest",
            source="a baseline for the text encoder",
            modalities=MODEL_MODALITIES["clinical-rf"],
            backend="sklearn",
        ),
    }
)
"""Name -> row, in the order of Table 1, with TMI-CLNet first and the project's own baselines last."""


def system_spec(name: str) -> SystemSpec:
    """The row of a model.

    Raises:
        UsageError: the name is unknown; the message lists the known names.
    """
    if name not in SYSTEMS:
        raise UsageError(f"unknown model {name!r}", fix=f"choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def encoder_names(config: Config) -> tuple[str, ...]:
    """The encoders of the configured model that it shares with TMI-CLNet: `ct`, `text`, `radiomics`."""
    names = {"image": "ct", "clinical": "text", "radiomics": "radiomics"}
    if config.system.name in ("tmi-clnet", "hfbsurv", "mmd"):
        return tuple(names[m] for m in active_modalities(config))
    return ("ct",) if config.system.name == "resnet50" and config.system.dims == 3 else ()
