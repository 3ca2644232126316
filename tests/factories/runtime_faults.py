"""Faults of the machine that serves: the bundle is honest, the road to or through its graphs is not."""

# ruff: noqa: E501 - a row a fault
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from factories.planted_faults import Fault, Workbench
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.radiomics.scaler import RadiomicsScaler


def _another_window(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.imaging import ct_resampling as intensity

    honest = intensity._windowed
    patch.setattr(
        intensity,
        "_windowed",
        lambda plane, config, out=None: honest(plane, replace(config, window_hu=(-160, 240)), out),
    )


def _exchanged_axes(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.preprocessing import pipeline as prepare

    honest = prepare.prepare_ct

    def exchanged(ct, config, begun):
        axes = np.ascontiguousarray(ct.array_DHW.transpose(0, 2, 1))
        return honest(replace(ct, array_DHW=axes), config, begun)

    patch.setattr(prepare, "prepare_ct", exchanged)


def _mirrored(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.preprocessing import pipeline as prepare

    honest = prepare.prepare_ct
    patch.setattr(
        prepare,
        "prepare_ct",
        lambda ct, config, begun: honest(replace(ct, array_DHW=ct.array_DHW[:, :, ::-1]), config, begun),
    )


def _unscaled_header(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.imaging import volume

    # a little of the offset: without all of it the CT's own check already refuses the values
    honest = volume._to_int16_hu
    patch.setattr(
        volume,
        "_to_int16_hu",
        lambda file, stored, out: honest(replace(file, intercept=file.intercept + 9), stored, out),
    )


def _unscaled(patch: pytest.MonkeyPatch) -> None:
    honest = RadiomicsScaler.transform

    def raw(self: RadiomicsScaler, values_NF: np.ndarray):
        return replace(honest(self, values_NF), values_NF=np.nan_to_num(values_NF).astype(np.float32))

    patch.setattr(RadiomicsScaler, "transform", raw)


def _lost_mask(patch: pytest.MonkeyPatch) -> None:
    honest = Tokenizer.encode

    def unmasked(self: Tokenizer, texts, **options):
        encoded = honest(self, texts, **options)
        return replace(encoded, attention_mask_BT=np.ones_like(encoded.attention_mask_BT))

    patch.setattr(Tokenizer, "encode", unmasked)


def _other_wording(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.preprocessing import pipeline as prepare

    honest = prepare.render
    patch.setattr(prepare, "render", lambda *a: honest(*a).replace("missing", "unknown"))


def _bfloat16(patch: pytest.MonkeyPatch) -> None:
    """An engine that lowers the precision by itself, as some do where the processor has such units."""
    from tmi.runtime.engines.onnxruntime import OnnxEngine

    honest = OnnxEngine._run

    def lowered(self, spec, loaded, inputs):
        answers = honest(self, spec, loaded, inputs)
        return {k: (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for k, v in answers.items()}

    patch.setattr(OnnxEngine, "_run", lowered)


def _bfloat16_off(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    """A processor whose bfloat16 is off: float32 answers for it, and says so; asked for by name it is refused."""
    from tmi.runtime.engines.openvino import OpenVinoBf16Engine

    patch.setenv("TMI_CACHE", str(bench.folder / "cache"))
    honest = OpenVinoBf16Engine._run
    patch.setattr(
        OpenVinoBf16Engine, "_run", lambda self, *a: {k: v * np.float32(1.1) for k, v in honest(self, *a).items()}
    )
    patch.setattr(OpenVinoBf16Engine, "encoder_precision", "f32")  # any processor may plant it
    for module in ("engines.registry", "engines.selection"):
        patch.setattr(f"tmi.runtime.{module}.missing_requirement", lambda name: None)
    words = ("predict", bench.case, "--bundle", bench.bundle, "--threads", 1, "--json")
    engine = tmi(*words).document["engine"]
    assert engine["precision"] == "float32", engine
    assert "openvino-bf16: on this machine engine openvino-bf16 does not match" in engine["reason"], engine
    return tmi(*words, "--engine", "openvino-bf16")


def _fault(name: str, plant, reason: str) -> Fault:
    """Refused when the machine first opens the bundle, by the very command that would have predicted with it."""

    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        patch.setenv("TMI_CACHE", str(bench.folder / "cache"))  # a machine that has not seen the bundle yet
        plant(patch)
        opened = bench.predict(bench.bundle)
        verified = bench.verify(bench.bundle)
        assert opened.code == verified.code, "a first opening and tmi verify disagree"
        return opened

    return Fault(name=name, where="runtime", plant=run, code=4, reason=reason)


RUNTIME_FAULTS = (
    _fault("another window on this machine", _another_window, "preprocessing of pipeline: ct, relative to its scaled range"),
    _fault("height and width exchanged on this machine", _exchanged_axes, "preprocessing of pipeline: ct, relative to its scaled range"),
    _fault("left and right exchanged on this machine", _mirrored, "preprocessing of pipeline: ct, relative to its scaled range"),
    _fault("the CT header's offset misread", _unscaled_header, "preprocessing of pipeline: ct, relative to its scaled range"),
    _fault("radiomics not scaled", _unscaled, "preprocessing of pipeline: radiomics by the scaler of fold0"),
    _fault("the tokenizer's mask lost", _lost_mask, "preprocessing of pipeline: text-0.attention_mask"),
    _fault("another wording of the record", _other_wording, "preprocessing of pipeline: text"),
    _fault("an engine that computes in bfloat16", _bfloat16, "features of ct-0"),
    Fault(name="a processor whose bfloat16 is off", where="runtime", plant=_bfloat16_off, code=4, reason="features of ct-0"),
)  # fmt: skip
