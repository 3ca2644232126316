"""Faults of an exported bundle: changed files, changed files with new fingerprints, and invalid signatures."""

# ruff: noqa: E501 - one fault per row
from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from factories.planted_faults import Fault, Workbench, edit_manifest, manifest_at, reseal, write_key_pair
from factories.tmi_command import CommandResult, tmi

Corruption = Callable[[Path, Workbench], object]


class _Code:
    """Object whose unpickling runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def _exchange(first: Path, second: Path) -> None:
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(folder: Path, old: str, new: str) -> None:
    file = folder / "manifest.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def _newer(folder: Path, _: Workbench) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(schema="tmi-bundle/9"))


def _window(folder: Path, _: Workbench) -> None:
    config = manifest_at(folder).config
    reseal(folder, config=replace(config, ct=replace(config.ct, window_hu=(-160.0, 240.0))))


def _folds(folder: Path, _: Workbench) -> None:
    first, second = manifest_at(folder).folds
    reseal(folder, folds=(replace(first, ct=second.ct), replace(second, ct=first.ct)))


def _stale_resealed(folder: Path, bench: Workbench) -> None:
    shutil.copyfile(bench.other_bundle / "graphs" / "ct-0.onnx", folder / "graphs" / "ct-0.onnx")
    reseal(folder)


def _resealed_exchange(first: str, second: str) -> Corruption:
    def corrupt(folder: Path, _: Workbench) -> None:
        _exchange(folder / first, folder / second)
        reseal(folder)

    return corrupt


def _forge(folder: Path, bench: Workbench) -> None:
    """Replace the whole bundle by another, consistent one under the old signature."""
    signature = (folder / "signature.sig").read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(bench.other_bundle, folder)
    (folder / "signature.sig").write_bytes(signature)


def _golden(folder: Path, _: Workbench) -> None:
    """Change the stored reference outputs by 1 %, as if to let a wrong graph pass."""
    file = folder / "golden.safetensors"
    tensors = load_file(file)
    save_file({name: t * 1.01 for name, t in tensors.items()}, file)
    reseal(folder)


def _by_another_key(folder: Path, bench: Workbench) -> None:
    private, _ = write_key_pair(bench.folder, "other")
    assert tmi("sign", folder, "--key", private, "--force").code == 0


def _rejected_by(
    command: str, corrupt: Corruption, *more: str
) -> Callable[[Workbench, pytest.MonkeyPatch], CommandResult]:
    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        folder = bench.copy()
        corrupt(folder, bench)
        key = ("--key", bench.public) if "--key" in more else ()
        return (bench.predict if command == "predict" else bench.verify)(folder, *key)

    return run


def _file(name: str, corrupt: Corruption, reason: str) -> Fault:
    return Fault(name=name, where="file", plant=_rejected_by("predict", corrupt), code=6, reason=reason)


def _resealed(name: str, corrupt: Corruption, reason: str) -> Fault:
    return Fault(name=name, where="resealed", plant=_rejected_by("verify", corrupt), code=4, reason=reason)


def _signature(name: str, corrupt: Corruption, reason: str) -> Fault:
    return Fault(name=name, where="signature", plant=_rejected_by("verify", corrupt, "--key"), code=6, reason=reason)


CHANGED = "was changed after the export"
FILE_FAULTS = (
    _file("a truncated graph", lambda f, b: (f / "graphs/ct-0.onnx").write_bytes((f / "graphs/ct-0.onnx").read_bytes()[:-9]),
          f"graphs/ct-0.onnx {CHANGED}"),
    _file("one bit of a graph", lambda f, b: _flip(f / "graphs/text-0.onnx"), f"graphs/text-0.onnx {CHANGED}"),
    _file("a stale graph beside a new model",
          lambda f, b: shutil.copyfile(b.other_bundle / "graphs/fusion.onnx", f / "graphs/fusion.onnx"),
          f"graphs/fusion.onnx {CHANGED}"),
    _file("a stale engine beside a new model", lambda f, b: (f / "graphs/ct-0.engine").write_bytes(b"plan"),
          "graphs/ct-0.engine is not part of the bundle"),
    _file("scalers exchanged between folds", lambda f, b: _exchange(f / "scalers/fold0.json", f / "scalers/fold1.json"),
          f"scalers/fold0.json {CHANGED}"),
    _file("another tokenizer",
          lambda f, b: shutil.copyfile(b.other_bundle / "tokenizers/text-0.json", f / "tokenizers/text-0.json"),
          f"tokenizers/text-0.json {CHANGED}"),
    _file("a file missing", lambda f, b: (f / "scalers/fold1.json").unlink(), "scalers/fold1.json is missing"),
    _file("a file added", lambda f, b: (f / "notes.txt").write_text("hello"), "notes.txt is not part of the bundle"),
    _file("a pickle in the place of weights",
          lambda f, b: (f / "weights/ct-0.safetensors").write_bytes(pickle.dumps(_Code())),
          f"weights/ct-0.safetensors {CHANGED}"),
    _file("the threshold edited in the manifest", lambda f, b: _edit(f, '"threshold": 0.5', '"threshold": 0.9'),
          f"manifest.json {CHANGED}"),
    _file("a manifest of a newer schema", _newer, "a newer tmi .* made it: .* 'tmi-bundle/9'"),
    _resealed("a stale graph, fingerprints taken again", _stale_resealed, "features of ct-0"),
    _resealed("two graphs exchanged, fingerprints taken again", _resealed_exchange("graphs/ct-0.onnx", "graphs/ct-1.onnx"),
              "features of ct-0"),
    _resealed("scalers exchanged, fingerprints taken again",
              _resealed_exchange("scalers/fold0.json", "scalers/fold1.json"), "meaning .* scalers/fold0.json, scalers/fold1.json changed"),
    _resealed("tokenizers exchanged, fingerprints taken again",
              _resealed_exchange("tokenizers/text-0.json", "tokenizers/text-1.json"), "meaning .* tokenizers/text-0.json, tokenizers/text-1.json changed"),
    _resealed("another window in the config", _window, "meaning .* config of the manifest changed"),
    _resealed("another threshold", lambda f, b: reseal(f, threshold=0.9), "meaning .* threshold is 0.9, at the export .* 0.5"),
    _resealed("classes exchanged in the manifest", lambda f, b: reseal(f, classes=("bad", "good")), "meaning .* classes"),
    _resealed("folds that read each other's encoder", _folds, "meaning .* roles of the manifest changed"),
    _resealed("a synthetic cohort that is declared real, or the reverse",
              lambda f, b: reseal(f, synthetic=not manifest_at(f).synthetic), "meaning .* synthetic is"),
    _resealed("stored reference outputs that were changed", _golden, "features of|logits of"),
    _signature("a signature replaced by another key's", _by_another_key, "the signature is not by signer.public.pem"),
    _signature("a signature removed", lambda f, b: (f / "signature.sig").unlink(), "signature.sig is missing"),
    _signature("the signature of another bundle",
               lambda f, b: shutil.copyfile(b.other_bundle / "signature.sig", f / "signature.sig"),
               "the signature does not match the files"),
    _signature("a signature that was edited", lambda f, b: _flip(f / "signature.sig"), "the signature"),
    _signature("a whole other model under the old signature", _forge, "the signature does not match the files"),
)  # fmt: skip
