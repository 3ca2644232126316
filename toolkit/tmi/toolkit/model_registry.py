"""Registry of the models: one row each. It imports nothing; a row names its functions as `module:function`.

A network has up to three parts, and an export partitions it at the prefixes of their weights: `ct_encoder.` takes the
volume, `text_encoder.` the tokens, and `fusion.` the features of both encoders and the scaled radiomics, as far as the
model uses them, and returns the logits. An estimator of scikit-learn has no parts.

Further models are added without a change of this package: `register_model` adds a row in this process, an installed
package adds one by an entry point of the group `tmi.models` (docs/systems.md, "Add a network").
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from tmi.toolkit.errors import UsageError
from tmi.toolkit.modality import MODALITIES, Modality

ENTRY_POINTS = "tmi.models"
"""Group of the entry points; the name is the model's, the object its `ModelSpec`."""
TEMPERATURE_BUFFER = "fusion.temperature"
"""Buffer that divides the logits of a network that has no layer whose outputs are its logits."""
REFERENCE_MODEL = "tmi-clnet"
"""The model that the others are compared with, and the key of its row in every table."""
MAX_NAME = 64
"""Largest number of characters of an unknown name in an error message."""


class UnknownModelError(UsageError):
    """No installed package has a model of the name."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Encoder of one modality."""

    builder: str
    """`module:function` of the config; returns the module: [B,1,D,H,W], or ids and mask [B,T], -> feature [B,C]."""
    width: str
    """`module:function` of the config; returns C. It imports no torch, as a serving machine calls it."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One row of the registry."""

    name: str
    """Value of `--model` and `system.name`."""
    description: str
    """One-line description."""
    source: str
    """Publication, or the purpose of a baseline."""
    modalities: tuple[Modality, ...]
    """Modalities that the model can use, in the order of `MODALITIES`."""
    trainer: Literal["torch", "sklearn"]
    """Trained by gradient steps (`torch`) or by one call of `fit` (`sklearn`)."""
    builder: str
    """`module:function` of the config; returns the fusion part of a network, or the unfitted estimator. The fusion part
    takes the features of the encoders (image, then text) and the scaled radiomics [B,1781], as far as the model uses
    them, and returns an object with `logits_BK`."""
    encoders: Mapping[Modality, EncoderSpec] = field(default_factory=dict)
    """Encoders of a network by modality; one for the radiomics, if any, is `radiomics_encoder` of the fusion part."""
    volume_encoder: EncoderSpec | None = None
    """Encoder of the image if `system.dims` is 3; None: the model has one encoder for both values."""
    network: str = "tmi.toolkit.models.factory:assemble_network"
    """`module:function` of the config; returns the whole network from its parts."""
    loss: str = "tmi.training.losses.total:task_loss"
    """`module:function` of (output of the network, labels, loss config); returns a `tmi.training.losses.total.Loss`."""
    logit_layer: tuple[str, ...] = (TEMPERATURE_BUFFER,)
    """Weight and bias of the layer that computes the logits: a temperature T divides both, (W/T) x + b/T. Without such
    a layer: the buffer that divides the logits."""
    parameters: str | None = None
    """`module:class` of the dataclass that `system.parameters` is read as; None: the model has none. Its module imports
    no torch."""
    ablation: bool = False
    """Whether `network.modalities` chooses the modalities."""
    explained: tuple[tuple[Modality, ...], ...] = ()
    """Sets of modalities with which the network can be explained: the image encoder has the four residual stages of
    TMI-CLNet's."""

    def encoder(self, modality: Modality, *, dims: int) -> EncoderSpec | None:
        """The encoder of a modality with this `system.dims`; None: the model has none."""
        if modality == "image" and dims == 3 and self.volume_encoder is not None:
            return self.volume_encoder
        return self.encoders.get(modality)


_PARTS = "tmi.toolkit.models"
_WIDTHS = f"{_PARTS}.feature_widths"
CT_ENCODER = EncoderSpec(builder=f"{_PARTS}.encoders.resnet3d:ct_encoder", width=f"{_WIDTHS}:ct_encoder")
"""3D ResNet of TMI-CLNet on the volume."""
TEXT_ENCODER = EncoderSpec(builder=f"{_PARTS}.encoders.bert:text_encoder", width=f"{_WIDTHS}:text_encoder")
"""BERT of TMI-CLNet on the clinical text."""
RADIOMICS_ENCODER = EncoderSpec(
    builder=f"{_PARTS}.encoders.mlp:radiomics_encoder", width=f"{_WIDTHS}:radiomics_encoder"
)
"""MLP of TMI-CLNet on the scaled radiomics."""
SHARED_ENCODERS: Mapping[Modality, EncoderSpec] = MappingProxyType(
    {"clinical": TEXT_ENCODER, "radiomics": RADIOMICS_ENCODER, "image": CT_ENCODER}
)
"""Encoders of TMI-CLNet, which other models may use too; `train.freeze` and pre-trained weights apply to them alone."""
_ROWS = (
    ModelSpec(
        name=REFERENCE_MODEL,
        description="CT, text and radiomics encoders, IMA, TCAF, 1D DenseNet; TMFF loss",
        source="L. Wu et al., TMI-CLNet",
        modalities=MODALITIES,
        trainer="torch",
        builder=f"{_PARTS}.tmi_clnet.modality_ablation:create_fusion",
        encoders=SHARED_ENCODERS,
        network=f"{_PARTS}.tmi_clnet.model:create_tmi_clnet",
        loss="tmi.training.systems.objectives:tmi_clnet_loss",
        logit_layer=("fusion.head.densenet.class_layers.out.weight", "fusion.head.densenet.class_layers.out.bias"),
        ablation=True,
        explained=(MODALITIES, ("image",)),
    ),
    ModelSpec(
        name="resnet50",
        description="2D ResNet-50 on the middle axial slice; `dims` 3: the 3D one on the volume",
        source="K. He et al. 2016",
        modalities=("image",),
        trainer="torch",
        builder=f"{_PARTS}.outputs:linear_head",
        encoders={
            "image": EncoderSpec(builder=f"{_PARTS}.encoders.resnet2d:slice_encoder", width=f"{_WIDTHS}:slice_encoder")
        },
        volume_encoder=CT_ENCODER,
        logit_layer=("fusion.out.weight", "fusion.out.bias"),
    ),
    ModelSpec(
        name="vit",
        description="vision transformer on the middle axial slice; `dims` 3: on the volume",
        source="A. Dosovitskiy et al. 2020",
        modalities=("image",),
        trainer="torch",
        builder=f"{_PARTS}.outputs:linear_head",
        encoders={"image": EncoderSpec(builder=f"{_PARTS}.encoders.vit:VitEncoder", width=f"{_WIDTHS}:vit_encoder")},
        logit_layer=("fusion.out.weight", "fusion.out.bias"),
    ),
    ModelSpec(
        name="svm",
        description="radiomics: impute, scale, drop constants, LASSO, RBF support vector machine, Platt scaling",
        source="S. Mukherjee et al. 2022",
        modalities=("radiomics",),
        trainer="sklearn",
        builder="tmi.training.systems.radiomics_pipeline:support_vector_machine",
    ),
    ModelSpec(
        name="rf",
        description="radiomics: impute, scale, drop constants, LASSO, random forest",
        source="L. Breiman 2001",
        modalities=("radiomics",),
        trainer="sklearn",
        builder="tmi.training.systems.radiomics_pipeline:random_forest",
    ),
    ModelSpec(
        name="simpleff",
        description="five slices through a 2D ResNet-50 to 8 features each, with radiomics; averaged over slices",
        source="Y. S. Choi et al. 2021",
        modalities=("radiomics", "image"),
        trainer="torch",
        builder=f"{_PARTS}.baselines.simpleff:create_fusion",
        encoders={
            "image": EncoderSpec(
                builder=f"{_PARTS}.baselines.simpleff:slice_features", width=f"{_WIDTHS}:slice_features"
            )
        },
    ),
    ModelSpec(
        name="hfbsurv",
        description="hierarchical factorised bilinear fusion of the three encoders' features",
        source="R. Li et al. 2022",
        modalities=MODALITIES,
        trainer="torch",
        builder=f"{_PARTS}.baselines.hfbsurv:HfbsurvFusion",
        encoders=SHARED_ENCODERS,
        logit_layer=("fusion.head.7.weight", "fusion.head.7.bias"),
    ),
    ModelSpec(
        name="mmd",
        description="mean of the embeddings present, modality dropout and reconstruction; predicts with any subset",
        source="C. Cui et al. 2022",
        modalities=MODALITIES,
        trainer="torch",
        builder=f"{_PARTS}.baselines.mmd:MmdFusion",
        encoders=SHARED_ENCODERS,
        loss="tmi.training.systems.objectives:mmd_loss",
        logit_layer=("fusion.head.2.weight", "fusion.head.2.bias"),
    ),
    ModelSpec(
        name="logreg",
        description="clinical values as numbers: impute, scale, drop constants, L2-penalised logistic regression",
        source="a baseline for the text encoder",
        modalities=("clinical",),
        trainer="sklearn",
        builder="tmi.training.systems.clinical_pipeline:logistic_regression",
    ),
    ModelSpec(
        name="clinical-rf",
        description="clinical values as numbers: impute, scale, drop constants, random forest",
        source="a baseline for the text encoder",
        modalities=("clinical",),
        trainer="sklearn",
        builder="tmi.training.systems.clinical_pipeline:random_forest",
    ),
    ModelSpec(
        name="late-fusion",
        description="mean of the probabilities of `logreg` and `rf`",
        source="a baseline for the fusion",
        modalities=("clinical", "radiomics"),
        trainer="sklearn",
        builder="tmi.training.systems.joint_pipeline:late_fusion",
    ),
    ModelSpec(
        name="boosting",
        description="clinical values as numbers and radiomics: histogram gradient boosting",
        source="a baseline for the fusion",
        modalities=("clinical", "radiomics"),
        trainer="sklearn",
        builder="tmi.training.systems.joint_pipeline:boosting",
    ),
)
MODELS: Mapping[str, ModelSpec] = MappingProxyType({row.name: row for row in _ROWS})
"""Name -> row of this package, in the order of Table 1, with TMI-CLNet first and the project's own baselines last."""
_added: dict[str, ModelSpec] = {}


def register_model(spec: ModelSpec) -> None:
    """Add a model in this process. Processes that it starts know only this package's models and installed ones.

    Raises:
        UsageError: another model has the name, or the row contradicts itself.
    """
    known = MODELS.get(spec.name) or _added.get(spec.name)
    if known is not None and known != spec:
        raise UsageError(f"a model named {spec.name!r} is registered already", fix="choose another name")
    for contradiction in _contradictions(spec):
        raise UsageError(f"model {spec.name!r}: {contradiction}", fix="correct its ModelSpec")
    _added[spec.name] = spec


def unregister_model(name: str) -> None:
    """Remove a model that `register_model` or an entry point added; one that is unknown is ignored."""
    _added.pop(name, None)


def model_spec(name: str) -> ModelSpec:
    """The row of a model of this package, a registered one or an installed one.

    Raises:
        UsageError: the name is unknown (the message lists the known names), or an installed row cannot be read.
    """
    spec = MODELS.get(name) or _added.get(name) or _installed_model(name)
    if spec is None:
        shown = repr(name) if len(name) <= MAX_NAME else f"{name[:MAX_NAME]!r}..."
        raise UnknownModelError(
            f"unknown model {shown}, which no installed package adds",
            fix=f"choose one of {', '.join(model_names())}, or install the package that adds it",
        )
    return spec


def model_names(*, trainer: Literal["torch", "sklearn"] | None = None) -> tuple[str, ...]:
    """Names of the known models, or of those of one trainer: this package's first, then added ones.

    With `trainer`, an installed row that cannot be read is left out.
    """
    from importlib.metadata import entry_points  # 30 ms, which `tmi --help` does not pay

    installed = (p.name for p in entry_points(group=ENTRY_POINTS))
    names = tuple(dict.fromkeys((*MODELS, *_added, *installed)))
    return names if trainer is None else tuple(name for name in names if _has_trainer(name, trainer))


def _has_trainer(name: str, trainer: str) -> bool:
    try:
        return model_spec(name).trainer == trainer
    except UsageError:
        return False


def parameters_type(name: str, target: str) -> Any:
    """Import the dataclass of a model's parameters.

    Raises:
        UsageError: it cannot be imported.
    """
    try:
        return import_target(target)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"model {name!r}: its parameters {target} cannot be imported: {error}",
            fix="install the package that adds it again",
        ) from error


def import_target(target: str) -> Any:
    """Import the object that `module:name` names; the caller states its type."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _installed_model(name: str) -> ModelSpec | None:
    """The row of an installed package, remembered from the first call; None: no package adds a model of the name."""
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            spec = point.load()
        except Exception as error:
            raise UsageError(
                f"model {name!r}: its entry point {point.value} cannot be imported: {type(error).__name__}: {error}",
                fix="install a version of the package that fits this one",
            ) from error
        if not isinstance(spec, ModelSpec) or spec.name != name:
            raise UsageError(
                f"entry point {point.value} of the group {ENTRY_POINTS} is no ModelSpec of the name {name!r}",
                fix="correct or uninstall the package that declares it",
            )
        register_model(spec)
        return spec
    return None


def _contradictions(spec: ModelSpec) -> Iterator[str]:
    if not spec.modalities or spec.modalities != tuple(m for m in MODALITIES if m in spec.modalities):
        yield f"modalities are {spec.modalities}, not some of {', '.join(MODALITIES)} in this order"
    surplus = sorted(set(spec.encoders) - set(spec.modalities))
    if surplus:
        yield f"it has an encoder of {surplus[0]}, which it does not use"
    graphs = {"image", "clinical"} & set(spec.modalities) if spec.trainer == "torch" else set()
    missing = sorted(graphs - set(spec.encoders))
    if missing:
        yield f"it uses {missing[0]} and has no encoder of it"
    if spec.trainer == "torch" and not all(name.startswith("fusion.") for name in spec.logit_layer):
        yield f"its logit layer {', '.join(spec.logit_layer)} is not of the fusion part"
