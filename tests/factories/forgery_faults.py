"""Faults of a forger: manifests that contradict themselves, special files, exchanged bytes, and the keys of others."""

# ruff: noqa: E501 - one fault per row
from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from factories.planted_faults import (
    Fault,
    PlantFunction,
    Workbench,
    edit_manifest,
    manifest_at,
    reseal,
    rewrite_manifest,
    write_key_pair,
)
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.bundle.reader import Bundle, write_manifest
from tmi.runtime.bundle.signing import sign_bundle

Command = Callable[[Workbench, Path], CommandResult]
Corruption = Callable[[Path, Workbench], object]


def _predict(bench: Workbench, folder: Path) -> CommandResult:
    return bench.predict(folder)


def _verify(bench: Workbench, folder: Path) -> CommandResult:
    return bench.verify(folder)


def _explain(bench: Workbench, folder: Path) -> CommandResult:
    return tmi("explain", bench.case, "--bundle", folder, "--out", bench.folder / "explained", "--quick")


def _corrupted(corrupt: Corruption, command: Command) -> PlantFunction:
    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        patch.setenv("TMI_CACHE", str(bench.folder / "cache"))  # an empty cache, so that the self-test runs
        folder = bench.copy()
        corrupt(folder, bench)
        return command(bench, folder)

    return run


def _manifest(change: Callable[[dict[str, Any]], object]) -> Corruption:
    return lambda folder, bench: edit_manifest(folder, change)


def _graph(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(graph for graph in manifest["graphs"] if graph["name"] == name)


def _one_graph_twice(manifest: dict[str, Any]) -> None:
    _graph(manifest, "ct-1")["artefacts"] = dict(_graph(manifest, "ct-0")["artefacts"])


def _exchange_roles(manifest: dict[str, Any]) -> None:
    _graph(manifest, "ct-0")["role"], _graph(manifest, "text-0")["role"] = "text", "ct"


def _text(text: str) -> Corruption:
    """Put a text in place of the manifest's threshold, under a fresh digest."""

    def corrupt(folder: Path, _: Workbench) -> None:
        manifest = (folder / "manifest.json").read_text()
        rewrite_manifest(folder, manifest.replace('"threshold": 0.5', f'"threshold": {text}'))

    return corrupt


def _weights(name: str) -> Corruption:
    """Scale all weights of a graph that only `tmi explain` and `tmi report` read."""

    def corrupt(folder: Path, _: Workbench) -> None:
        path = folder / "weights" / f"{name}.safetensors"
        save_file({key: np.asarray(t * 1.5, dtype=t.dtype) for key, t in load_file(path).items()}, path)
        reseal(folder)

    return corrupt


def _exchanged_weights(folder: Path, _: Workbench) -> None:
    first, second = (folder / "weights" / f"ct-{n}.safetensors" for n in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    reseal(folder)


def _scaler(folder: Path, _: Workbench) -> None:
    """Shift the first feature of a scaler by a little: the probability changes in its third digit."""
    path = folder / "scalers" / "fold0.json"
    document = json.loads(path.read_text())
    key = next(k for k, v in document.items() if isinstance(v, list) and v and isinstance(v[0], float))
    document[key][0] += abs(document[key][0]) * 0.01 + 1e-3
    path.write_text(json.dumps(document))
    reseal(folder)


def _name_in_tokenizer(folder: Path, _: Workbench) -> None:
    """Put a patient's name in place of a token."""
    path = folder / "tokenizers" / "text-0.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    token = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary["mustermann"] = vocabulary.pop(token)
    path.write_text(json.dumps(document))
    reseal(folder)


def _onnx(change: Callable[[onnx.ModelProto], object]) -> Corruption:
    def corrupt(folder: Path, _: Workbench) -> None:
        path = folder / "graphs" / "ct-0.onnx"
        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString())
        reseal(folder)

    return corrupt


def _operator(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Conv").domain = "com.evil"


def _external_file(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def _huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims.append(10**9)


def _special(make: Callable[[Path], object], name: str = "graphs/ct-0.onnx") -> Corruption:
    """Put a special file in place of a file of the bundle."""

    def corrupt(folder: Path, _: Workbench) -> None:
        path = folder / name
        if path.is_dir():
            path.rename(folder.parent / "moved")
        else:
            path.unlink(missing_ok=True)
        make(path)

    return corrupt


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def _after_check(name: str, module: str, make: Callable[[Path], object] | None = None) -> PlantFunction:
    """Exchange a file after its digest was compared and before it is loaded."""

    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        from tmi.runtime.bundle import signing

        original = signing.open_trusted_bundle

        def open_and_exchange(folder: Path, *arguments: Any, **options: Any) -> Bundle:
            bundle = original(folder, *arguments, **options)
            path = folder / name
            data = path.read_bytes()
            path.unlink()
            if make is None:
                path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            else:
                make(path)
            return bundle

        patch.setattr(module, open_and_exchange)
        patch.setenv("TMI_CACHE", "off")
        return bench.predict(bench.copy())

    return run


def _key(command: Callable[[Path], tuple[object, ...]], by: str) -> PlantFunction:
    """Open the bundle with the key of another signer, given by option, by variable or in `tmi.toml`."""

    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        _, other = write_key_pair(bench.folder, "other")
        words = command(bench.bundle)
        if by == "option":
            return tmi(*words, "--key", other)
        if by == "TMI_KEY":
            patch.setenv("TMI_KEY", str(other))
            return tmi(*words)
        (bench.folder / "tmi.toml").write_text(f"require_signature = true\ntrusted_keys = [{json.dumps(str(other))}]")
        return tmi(*words, cwd=bench.folder)

    return run


def _rollback(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    """Put an older bundle of the same run and signer back after a newer one was used."""
    patch.setenv("TMI_STATE", str(bench.folder / "state"))
    private, public = write_key_pair(bench.folder, "releaser")
    for name, created in (("new", "2026-02-01T00:00:00+00:00"), ("old", "2026-01-01T00:00:00+00:00")):
        folder = shutil.copytree(bench.bundle, bench.folder / name)
        write_manifest(folder, replace(manifest_at(folder), created=created))
        sign_bundle(folder, private, force=True)
    used = bench.predict(bench.folder / "new", "--key", public)
    assert used.code == 0, used.err
    return bench.predict(bench.folder / "old", "--key", public)


def _forged(
    name: str, corrupt: Corruption, reason: str, *, code: int = 6, command: Command = _predict, quick: bool = True
) -> Fault:
    return Fault(name=name, where="forged", plant=_corrupted(corrupt, command), code=code, reason=reason, quick=quick)


def _exchanged(name: str, plant: PlantFunction, reason: str, *, quick: bool = True) -> Fault:
    return Fault(name=name, where="exchanged", plant=plant, code=6, reason=reason, quick=quick)


def _signature(name: str, plant: PlantFunction, reason: str, *, quick: bool = True) -> Fault:
    return Fault(name=name, where="signature", plant=plant, code=6, reason=reason, quick=quick)


CHANGED = "was changed after the export"
OPENED = "tmi.runtime.serving.predictor.open_trusted_bundle"
FORGERY_FAULTS = (
    _forged("10^9 golden cases", _manifest(lambda m: m["golden"].update(count=10**9)), "golden cases is not 2 to 64"),
    _forged("-1 golden cases", _manifest(lambda m: m["golden"].update(count=-1)), "golden cases is not 2 to 64"),
    _forged("10^6 layers", _manifest(lambda m: m["config"]["network"]["text_encoder"].update(layers=10**6)), "layers has the impossible size"),
    _forged("one graph twice", _manifest(_one_graph_twice), r"two graphs are the same file graphs/ct-0"),
    _forged("roles exchanged in the manifest", _manifest(_exchange_roles), "the ct graph of fold 0 is 'ct-0', which is no ct graph"),
    _forged("another positive class in the manifest", _manifest(lambda m: m.update(positive=1 - m["positive"])), "meaning .* positive", code=4, command=_verify, quick=False),
    _forged("a manifest of 500 brackets", _text("[" * 500 + "]" * 500), "nested deeper than"),
    _forged("a threshold of 5,000 digits", _text("9" * 5000), "an integer of more than 40 digits"),
    _forged("a threshold of 1e400", _text("1e400"), "number that is not finite"),
    _forged("half a surrogate pair in the manifest", _text('"\\ud800"'), "surrogate"),
    _forged("a scaler that was edited, fingerprints taken again", _scaler, "meaning .* scalers/fold0.json changed", code=4, command=_verify, quick=False),
    _forged("eager weights scaled, fingerprints taken again", _weights("ct-0"), "engine eager does not match the validated model", code=4, command=_explain, quick=False),
    _forged("eager weights exchanged, fingerprints taken again", _exchanged_weights, "engine eager does not match the validated model", code=4, command=_explain),
    _forged("a graph with an operator of its own, fingerprints taken again", _onnx(_operator), "operator com.evil:Conv"),
    _forged("a graph that reads another file, fingerprints taken again", _onnx(_external_file), "stored in another file", quick=False),
    _forged("a graph with a tensor of 10^9 rows, fingerprints taken again", _onnx(_huge), "its shape needs", quick=False),
    _forged("a patient's name in a tokenizer, fingerprints taken again", _name_in_tokenizer, "meaning .* tokenizers/text-0.json changed", code=4, command=_verify, quick=False),
    _exchanged("a pipe in the place of a graph", _corrupted(_special(os.mkfifo), _predict), "graphs/ct-0.onnx is a pipe, not a regular file"),
    _exchanged("a pipe in the place of the manifest", _corrupted(_special(os.mkfifo, "manifest.json"), _predict), "manifest.json is a pipe, not a regular file"),
    _exchanged("a socket in the place of a graph", _corrupted(_special(_socket), _predict), "graphs/ct-0.onnx is a socket, not a regular file"),
    _exchanged("a link in the place of a graph", _corrupted(_special(lambda p: p.symlink_to("/etc/passwd")), _predict), "graphs/ct-0.onnx is a link, not a regular file"),
    _exchanged("a link that loops", _corrupted(_special(lambda p: p.symlink_to(p.name)), _predict), "graphs/ct-0.onnx is a link, not a regular file"),
    _exchanged("a linked folder", _corrupted(_special(lambda p: p.symlink_to(p.parent.parent / "moved"), "graphs"), _predict), "graphs is a link, not a regular file"),
    _exchanged("a pipe beside the graphs", _corrupted(_special(os.mkfifo, "graphs/extra"), _predict), "graphs/extra is a pipe"),
    _exchanged("a graph exchanged after its check", _after_check("graphs/fusion.onnx", OPENED), f"fusion.onnx {CHANGED}"),
    _exchanged("a scaler exchanged after its check", _after_check("scalers/fold0.json", OPENED), f"fold0.json {CHANGED}", quick=False),
    _exchanged("a pipe in the place of a graph after its check", _after_check("graphs/fusion.onnx", OPENED, os.mkfifo), f"fusion.onnx {CHANGED}", quick=False),
    _signature("another signer, tmi inspect --key", _key(lambda b: ("inspect", b), "option"), "the signature is not by other"),
    _signature("another signer, tmi inspect and TMI_KEY", _key(lambda b: ("inspect", b), "TMI_KEY"), "the signature is not by other"),
    _signature("another signer, tmi bench and trusted_keys", _key(lambda b: ("bench", b, "--engine", "onnx"), "tmi.toml"), "the signature is not by other"),
    _signature("an older bundle of the run and signer", _rollback, "a newer one of run", quick=False),
)  # fmt: skip
