"""Initial weights of the encoders, loaded from files and shared by all folds, and the config adapted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.training.pretrained.ct_weights import detect_layout, medicalnet_settings, read_ct_weights
from tmi.training.pretrained.origin import vocabulary_record
from tmi.training.pretrained.pretraining_record import pretraining_notes, require_matching_pretraining
from tmi.training.pretrained.text_weights import bert_settings, bert_tokenizer, read_text_weights
from tmi.training.pretrained.weight_file import read_weights
from tmi.training.pretrained.weight_report import WeightReport
from tmi.training.systems.factory import encoders

MEDICALNET_FIELDS = ("network.ct_encoder.stem_stride_DHW", "network.ct_encoder.dilation")


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Initial tensors of the encoders, the same in every fold."""

    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Encoder (`ct`, `text`) -> name in that encoder -> tensor."""
    reports: tuple[WeightReport, ...] = ()
    """One report for each encoder."""

    def load_into(self, network: nn.Module) -> None:
        """Load the tensors into a network's encoders; all other tensors are unchanged.

        Raises:
            UsageError: the network has no such encoder.
        """
        modules = encoders(network)
        for name, state in self.states.items():
            if name not in modules:
                raise UsageError(
                    f"weights for the {name} encoder are given, but the model has no such encoder",
                    fix="omit these weights",
                )
            modules[name].load_state_dict(dict(state), strict=False)

    def subset(self, names: Sequence[str]) -> InitialWeights | None:
        """The weights of the named encoders; None if there are none."""
        states = {name: state for name, state in self.states.items() if name in names}
        reports = tuple(report for report in self.reports if report.encoder in names)
        return InitialWeights(states=states, reports=reports) if states else None

    def document(self) -> dict[str, Any]:
        """Record of the weights in a run: encoder -> report."""
        return {report.encoder: report.document() for report in self.reports}


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """Initial weights of a training, with the config and the tokenizer that they require."""

    config: Config
    """The config with the sizes and strides of the weights."""
    weights: InitialWeights
    """Initial weights."""
    tokenizer: Tokenizer | None
    """Tokenizer of the text weights."""
    vocabulary: Mapping[str, Any] | None
    """Record of that tokenizer for the run."""
    notes: tuple[str, ...]
    """Changes of the config and their reasons, for the log."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that have initial weights."""
        return tuple(self.weights.states)


def prepare_initialization(
    config: Config, *, ct: Path | None, text: Path | None, chosen: tuple[str, ...] = (), schema: Schema | None = None
) -> Initialization:
    """Read the weight files and adapt the config to them.

    Args:
        config: config of the user.
        ct: file of a 3D ResNet, or None.
        text: folder of a BERT, or None.
        chosen: settings that the user gave explicitly; these are not changed.
        schema: clinical schema of the training, to compare with the schema of the text pre-training.

    Raises:
        UsageError: a file does not fit.
        DamagedError: a file cannot be read or is not trusted.
    """
    notes: list[str] = []
    states: dict[str, Mapping[str, Tensor]] = {}
    reports: list[WeightReport] = []
    tokenizer = None
    network = config.network
    if ct is not None:
        if detect_layout(read_weights(ct)) == "medicalnet":
            network, note = _use_medicalnet_layout(network, ct, chosen)
            notes.append(note)
        states["ct"], report = read_ct_weights(ct, network.ct_encoder)
        reports.append(report)
    clinical = config.clinical
    if text is not None:
        require_matching_pretraining(text, config)
        notes += pretraining_notes(text, schema)
        settings = bert_settings(text, network.text_encoder)
        if settings != network.text_encoder:
            notes.append(f"the text encoder takes the sizes of {text.name}: {settings.layers} layers of width "
                         f"{settings.hidden_size}, {settings.vocab_size} rows")  # fmt: skip
        network = replace(network, text_encoder=settings)
        tokenizer = bert_tokenizer(text)
        clinical = replace(clinical, vocab_size=None)
        states["text"], report = read_text_weights(text, settings)
        reports.append(report)
    return Initialization(
        config=replace(config, network=network, clinical=clinical),
        weights=InitialWeights(states=states, reports=tuple(reports)),
        tokenizer=tokenizer,
        vocabulary=None if tokenizer is None else vocabulary_record(tokenizer, text),
        notes=tuple(notes),
    )


def _use_medicalnet_layout(network: Any, file: Path, chosen: tuple[str, ...]) -> tuple[Any, str]:
    """The network config with MedicalNet's strides, unless the user set them, and a note for the log."""
    expected = medicalnet_settings(network.ct_encoder)
    if any(name in chosen for name in MEDICALNET_FIELDS):
        if network.ct_encoder == expected:
            return network, f"{file.name} has MedicalNet's layout, and the CT encoder has MedicalNet's strides"
        return network, (
            f"{file.name} has MedicalNet's layout, made for stem stride (2,2,2) and dilated stages 3 and 4; the CT "
            "encoder keeps the strides that --set gives it"
        )
    return replace(network, ct_encoder=expected), (
        f"{file.name} has MedicalNet's layout: the CT encoder takes its stem stride (2,2,2) and dilation 2 and 4 in "
        "stages 3 and 4 (disable this with --set network.ct_encoder.dilation=[1,1,1,1])"
    )
