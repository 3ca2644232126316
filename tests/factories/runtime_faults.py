"""Faults of a serving machine: the bundle is valid, but preprocessing or an engine is not."""

# ruff: noqa: E501 - one fault per row
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

    original = intensity._windowed
    patch.setattr(
        intensity,
        "_windowed",
        lambda plane, config, out=None: original(plane, replace(config, window_hu=(-160, 240)), out),
    )


def _exchanged_axes(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.preprocessing import pipeline as prepare

    original = prepare.prepare_ct

    def exchanged(ct, config, resampling):
        axes = np.ascontiguousarray(ct.array_DHW.transpose(0, 2, 1))
        return original(replace(ct, array_DHW=axes), config, resampling)

    patch.setattr(prepare, "prepare_ct", exchanged)


def _mirrored(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.preprocessing import pipeline as prepare

    original = prepare.prepare_ct
    patch.setattr(
        prepare,
        "prepare_ct",
        lambda ct, config, resampling: original(replace(ct, array_DHW=ct.array_DHW[:, :, ::-1]), config, resampling),
    )


def _unscaled_header(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.imaging import volume

    # a small part of the offset: if all of it were missing, the check of the CT would reject the values
    original = volume.to_int16_hu
    patch.setattr(
        volume,
        "to_int16_hu",
        lambda file, stored, out: original(replace(file, intercept=file.intercept + 9), stored, out),
    )


def _unscaled(patch: pytest.MonkeyPatch) -> None:
    original = RadiomicsScaler.transform

    def unscaled(self: RadiomicsScaler, values_NF: np.ndarray):
        return replace(original(self, values_NF), values_NF=np.nan_to_num(values_NF).astype(np.float32))

    patch.setattr(RadiomicsScaler, "transform", unscaled)


def _lost_mask(patch: pytest.MonkeyPatch) -> None:
    original = Tokenizer.encode

    def unmasked(self: Tokenizer, texts, **options):
        encoded = original(self, texts, **options)
        return replace(encoded, attention_mask_BT=np.ones_like(encoded.attention_mask_BT))

    patch.setattr(Tokenizer, "encode", unmasked)


def _other_wording(patch: pytest.MonkeyPatch) -> None:
    from tmi.toolkit.preprocessing import pipeline as prepare

    original = prepare.render
    patch.setattr(prepare, "render", lambda *a: original(*a).replace("missing", "unknown"))


def _bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Round the outputs of an engine to bfloat16, as engines do that lower the precision on their own."""
    from tmi.runtime.engines.onnxruntime import OnnxEngine

    original = OnnxEngine._run

    def lowered(self, spec, loaded, inputs):
        outputs = original(self, spec, loaded, inputs)
        return {k: (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for k, v in outputs.items()}

    patch.setattr(OnnxEngine, "_run", lowered)


def _bfloat16_off(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    """Make bfloat16 inexact: `auto` falls back to float32 and reports why, and the engine fails if it is named."""
    from tmi.runtime.engines.openvino import OpenVinoBf16Engine

    patch.setenv("TMI_CACHE", str(bench.folder / "cache"))
    original = OpenVinoBf16Engine._run
    patch.setattr(
        OpenVinoBf16Engine, "_run", lambda self, *a: {k: v * np.float32(1.1) for k, v in original(self, *a).items()}
    )
    patch.setattr(OpenVinoBf16Engine, "encoder_precision", "f32")  # so that the fault can be planted on any processor
    patch.setattr("tmi.runtime.engines.registry.missing_requirement", lambda name: None)
    words = ("predict", bench.case, "--bundle", bench.bundle, "--threads", 1, "--json")
    engine = tmi(*words).document["engine"]
    assert engine["precision"] == "float32", engine
    assert "openvino-bf16: on this machine engine openvino-bf16 does not match" in engine["reason"], engine
    return tmi(*words, "--engine", "openvino-bf16")


def _fault(name: str, plant, reason: str) -> Fault:
    """A fault that the startup self-test must find, in `tmi predict` and in `tmi verify` alike."""

    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        patch.setenv("TMI_CACHE", str(bench.folder / "cache"))  # an empty cache, so that the self-test runs
        plant(patch)
        opened = bench.predict(bench.bundle)
        verified = bench.verify(bench.bundle)
        assert opened.code == verified.code, "the startup self-test and tmi verify disagree"
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
