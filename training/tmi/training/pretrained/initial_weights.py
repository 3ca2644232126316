"""Where the encoders start from: files of weights for all folds, or nothing."""

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
from tmi.training.pretrained.pretraining_record import pretraining_notes, require_matching_pretraining
from tmi.training.pretrained.text_weights import bert_settings, bert_tokenizer, read_text_weights
from tmi.training.pretrained.weight_file import read_weights
from tmi.training.pretrained.weight_report import WeightReport
from tmi.training.systems.factory import encoders

MEDICALNET_FIELDS = ("network.ct_encoder.stem_stride_DHW", "network.ct_encoder.dilation")


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Tensors that every fold starts from."""

    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """`ct`, `text` -> name in that encoder -> tensor."""
    reports: tuple[WeightReport, ...] = ()
    """Where they come from."""

    def load_into(self, network: nn.Module) -> None:
        """Put them into a network's encoders; what no file fills stays as it is.

        Raises:
            UsageError: the network has no such encoder.
        """
        there = encoders(network)
        for name, state in self.states.items():
            if name not in there:
                raise UsageError(
                    f"weights for the {name} encoder are given, and the model has none", fix="leave them out"
                )
            there[name].load_state_dict(dict(state), strict=False)

    def subset(self, names: Sequence[str]) -> InitialWeights | None:
        """Those of the named encoders; None where there are none."""
        states = {name: state for name, state in self.states.items() if name in names}
        reports = tuple(report for report in self.reports if report.encoder in names)
        return InitialWeights(states=states, reports=reports) if states else None

    def document(self) -> dict[str, Any]:
        """What a run records of them."""
        return {report.encoder: report.document() for report in self.reports}


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """What files of weights decide before a training."""

    config: Config
    """The config, at the sizes and with the strides that the weights were made with."""
    weights: InitialWeights
    """The weights."""
    tokenizer: Tokenizer | None
    """The vocabulary that came with the text weights."""
    notes: tuple[str, ...]
    """What was changed in the config, and why, for people."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that weights were given for."""
        return tuple(self.weights.states)


def prepare_initialization(
    config: Config, *, ct: Path | None, text: Path | None, chosen: tuple[str, ...] = (), schema: Schema | None = None
) -> Initialization:
    """Read the files and fit the config to them.

    Args:
        config: as the user set it.
        ct: file of a 3D ResNet, or None.
        text: folder of a BERT, or None.
        chosen: settings that the user gave by hand; these are left as they are.
        schema: clinical schema of the training, to compare with the one that text weights were taught.

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
            network, note = _require_medicalnet_layout(network, ct, chosen)
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
        notes=tuple(notes),
    )


def _require_medicalnet_layout(network: Any, file: Path, chosen: tuple[str, ...]) -> tuple[Any, str]:
    wanted = medicalnet_settings(network.ct_encoder)
    if any(name in chosen for name in MEDICALNET_FIELDS):
        if network.ct_encoder == wanted:
            return network, f"{file.name} has MedicalNet's layout, and the CT encoder has MedicalNet's strides"
        return network, (
            f"{file.name} has MedicalNet's layout, made for stem stride (2,2,2) and dilated stages 3 and 4; the CT "
            "encoder keeps the strides that --set gives it"
        )
    return replace(network, ct_encoder=wanted), (
        f"{file.name} has MedicalNet's layout: the CT encoder takes its stem stride (2,2,2) and dilation 2 and 4 in "
        "stages 3 and 4 (keep the plain one with --set network.ct_encoder.dilation=[1,1,1,1])"
    )
