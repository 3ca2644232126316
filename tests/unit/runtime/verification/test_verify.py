"""`tmi verify`, `tmi inspect`, `tmi sign`, and a bundle's first opening on a machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from factories.planted_faults import manifest_at, reseal, write_key_pair
from factories.tmi_command import tmi
from tmi.runtime import Predictor
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.manifest import manifest_schema
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.onnxruntime import OnnxEngine
from tmi.runtime.engines.registry import ENGINES, missing_requirement
from tmi.runtime.verification.self_test import self_test_key


@pytest.fixture
def new_machine(tmp_path, monkeypatch) -> Path:
    """A machine that has opened no bundle yet."""
    folder = tmp_path / "new-cache"
    monkeypatch.setenv("TMI_CACHE", str(folder))
    return folder


@pytest.fixture
def copy(tiny_bundle, tmp_path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def wrong_by(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """ONNX Runtime answers with a relative error."""
    honest = OnnxEngine._run

    def run(self, spec, loaded, inputs):
        return {k: v * np.float32(1 + factor) for k, v in honest(self, spec, loaded, inputs).items()}

    monkeypatch.setattr(OnnxEngine, "_run", run)


def test_verify_judges_every_installed_engine_of_the_bundle(tiny_bundle):
    outcome = tmi("verify", tiny_bundle, "--threads", 1)
    assert outcome.code == 0, outcome.err
    assert "files as exported" in outcome.out
    assert "not signed" in outcome.out
    rows = [line.split("│")[1:4] for line in outcome.out.splitlines() if line.startswith("│")]
    judged = {row[0].strip() for row in rows}
    assert judged == {"files", *(n for n, s in ENGINES.items() if not s.gpu and missing_requirement(n) is None)}
    assert {row[1].strip() for row in rows if row[0].strip() == "onnx"} >= {"logits", "float64", "largest-batch"}
    assert "gates held" in outcome.out.splitlines()[-1]


def test_verify_as_json_states_every_gate_with_hardware_and_multiples(tiny_bundle):
    document = tmi("verify", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json").document
    assert document["schema"] == "tmi-verification/1"
    assert document["passed"] is True
    assert document["engines"] == ["onnx"]
    assert document["bundle"]["digest"] == open_bundle(tiny_bundle).digest
    assert set(document["hardware"]) == {"machine", "cpu", "system"}
    multiples = [g["multiple"] for g in document["gates"] if g["gate"] == "float64"]
    assert len(multiples) == 5
    assert all(0 < m < 20 for m in multiples)


def test_a_failed_gate_ends_with_4_a_table_and_a_mend(tiny_bundle, monkeypatch):
    wrong_by(monkeypatch, 1e-3)
    outcome = tmi("verify", tiny_bundle, "--engine", "onnx", "--threads", 1)
    assert outcome.code == 4
    assert "FAILED" in outcome.out
    assert "parity gates failed, first features of ct-0 (onnx): relative to eager float32" in outcome.err
    assert "docs/parity.md" in outcome.err
    document = tmi("verify", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json").document
    assert document["passed"] is False


def test_an_engine_that_is_not_there_ends_with_5(tiny_bundle, monkeypatch):
    monkeypatch.setattr("tmi.runtime.engines.registry.installed", lambda name: False)
    monkeypatch.setattr("tmi.runtime.verification.verify.installed", lambda name: False)
    asked = tmi("verify", tiny_bundle, "--engine", "openvino")
    assert asked.code == 5
    assert "engine openvino needs the package openvino" in asked.err
    every = tmi("verify", tiny_bundle)
    assert every.code == 5
    assert "no engine can run bundle" in every.err


def test_without_a_bundle_there_is_nothing_to_verify(tmp_path):
    outcome = tmi("verify", cwd=tmp_path)
    assert outcome.code == 2
    assert "bundle bundle (the default)" in outcome.err
    assert tmi("verify", tmp_path, "--engine", "abacus").code == 2


def test_a_signed_bundle_opens_and_only_the_signers_key_fits(copy, tmp_path, good_cases):
    private, public = write_key_pair(tmp_path, "signer")
    _, stranger = write_key_pair(tmp_path, "stranger")
    signed = tmi("sign", copy, "--key", private)
    assert signed.code == 0, signed.err
    assert "signature.sig; check with: tmi verify" in signed.out
    assert tmi("sign", copy, "--key", private).code == 2  # not twice without --force
    with_key = tmi("verify", copy, "--engine", "onnx", "--threads", 1, "--key", public)
    assert with_key.code == 0, with_key.err
    assert "signed by the key given" in with_key.out
    without = tmi("verify", copy, "--engine", "onnx", "--threads", 1)
    assert "signed, not checked: give the signer's public key with --key" in without.out
    other = tmi("predict", good_cases[0], "--bundle", copy, "--engine", "onnx", "--key", stranger)
    assert other.code == 6
    assert "the signature is not by stranger.public.pem" in other.err
    elsewhere = copy.rename(tmp_path / "renamed")
    assert tmi("predict", good_cases[0], "--bundle", elsewhere, "--engine", "onnx", "--key", public).code == 0


def test_what_is_no_key_is_wrong_usage(copy, tmp_path):
    (tmp_path / "no.pem").write_text("hello")
    for arguments in (("sign", copy), ("verify", copy, "--engine", "onnx")):
        private, _ = write_key_pair(tmp_path, "signer")
        if arguments[0] == "verify":
            assert tmi("sign", copy, "--key", private, "--force").code == 0
        for name, told in (("no.pem", "is no p"), ("nowhere.pem", "is not there")):
            outcome = tmi(*arguments, "--key", tmp_path / name)
            assert outcome.code == 2
            assert told in outcome.err
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_bundle_is_not_signed(copy, tmp_path):
    private, _ = write_key_pair(tmp_path, "signer")
    (copy / "scalers" / "fold0.json").write_text("{}")
    assert tmi("sign", copy, "--key", private).code == 6
    assert not (copy / "signature.sig").exists()


def test_a_first_opening_is_checked_said_remembered_and_recorded(tiny_bundle, good_cases, new_machine):
    def ask(*more: object):
        return tmi(
            "predict", good_cases[0], "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json", *more
        )

    skipped = ask("--no-verify")
    assert skipped.document["engine"]["verified"] == "no"
    assert "the check at a first opening is skipped (--no-verify)" in skipped.err
    assert not new_machine.exists()
    first = ask()
    assert first.document["engine"]["verified"] == "now"
    assert "first opening of this bundle with onnx on this machine: checking its answers" in first.err
    assert "it answers like the validated model" in first.err
    (file,) = (new_machine / "opened").iterdir()
    assert json.loads(file.read_text())["combination"] == self_test_key(open_bundle(tiny_bundle), "onnx")
    second = ask()
    assert second.document["engine"]["verified"] == "before"
    assert "first opening" not in second.err
    assert second.document["results"][0]["probability"] == first.document["results"][0]["probability"]


def test_another_engine_version_processor_or_bundle_is_a_first_opening_again(
    tiny_bundle, copy, new_machine, monkeypatch
):
    def opened(folder: Path = tiny_bundle, engine: str = "onnx") -> str:
        with Predictor.open(folder, engine=engine, threads=1) as predictor:
            return predictor.engine_record.verified

    assert (opened(), opened()) == ("now", "before")
    assert opened(engine="openvino") == "now"
    assert opened(copy) == "before"  # the same bundle in another place
    reseal(copy, extra={"note": "another export"})
    assert opened(copy) == "now"
    with monkeypatch.context() as patch:
        patch.setattr("tmi.runtime.verification.self_test.cpu_name", lambda: "Another CPU")
        assert opened() == "now"
    with monkeypatch.context() as patch:
        patch.setattr("tmi.runtime.verification.self_test.version", lambda name: "99.0.0")
        assert opened() == "now"
    assert opened() == "before"


def test_a_first_opening_that_fails_is_not_remembered(tiny_bundle, new_machine, monkeypatch):
    with monkeypatch.context() as patch:
        wrong_by(patch, 1e-3)
        for _ in range(2):
            with pytest.raises(
                ParityError, match="on this machine engine onnx does not answer like the validated model"
            ):
                Predictor.open(tiny_bundle, engine="onnx", threads=1)
    assert not new_machine.exists()
    with Predictor.open(tiny_bundle, engine="onnx", threads=1) as predictor:
        assert predictor.engine_record.verified == "now"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"combination": {"bundle": "another"}}'])
def test_a_spoilt_memory_is_no_memory(text, tiny_bundle, new_machine):
    Predictor.open(tiny_bundle, engine="onnx", threads=1).close()
    (file,) = (new_machine / "opened").iterdir()
    file.write_text(text)
    with Predictor.open(tiny_bundle, engine="onnx", threads=1) as predictor:
        assert predictor.engine_record.verified == "now"


def test_a_cache_that_cannot_be_written_stops_no_prediction(tiny_bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "file"))
    told: list[str] = []
    with Predictor.open(tiny_bundle, engine="onnx", threads=1, log=told.append) as predictor:
        assert predictor.engine_record.verified == "now"
    assert "that it held cannot be remembered" in told[-1]
    assert "TMI_CACHE" in told[-1]


def test_without_a_cache_every_opening_is_checked(monkeypatch, tiny_bundle, tmp_path):
    monkeypatch.setenv("TMI_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        told: list[str] = []
        with Predictor.open(tiny_bundle, engine="onnx", threads=1, log=told.append) as predictor:
            assert predictor.engine_record.verified == "now"
        assert "not remembered, caching is off" in told[-1]
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_a_bundle_is(tiny_bundle):
    outcome = tmi("inspect", tiny_bundle)
    assert outcome.code == 0, outcome.err
    manifest = open_bundle(tiny_bundle).manifest
    for text in ("preset tiny, a synthetic cohort of 6 cases", "good, bad; bad from 0.5 on", "0: ct-0, text-0",
                 "not signed", f"torch {manifest.versions['torch']}", "openvino: ready", "logits [B,2,2]",
                 "contents not hashed (tmi verify)", "for research use only"):  # fmt: skip
        assert text in outcome.out, text


def test_inspect_as_json_holds_the_manifest_without_its_long_parts(tiny_bundle):
    document = tmi("inspect", tiny_bundle, "--json").document
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert document["schema"] == "tmi-inspection/1"
    assert document["files"] == len(manifest["files"])
    assert document["bytes"] == sum(f["bytes"] for f in manifest["files"].values())
    assert document["manifest"] == {k: v for k, v in manifest.items() if k not in ("files", "config")}


def test_inspect_is_quick_and_imports_nothing_heavy(tiny_bundle):
    program = (
        "import sys, time\nstart = time.perf_counter()\nfrom tmi.toolkit.cli.main import main\n"
        "sys.argv = ['tmi', 'inspect', sys.argv[1], '--json']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'nibabel', 'onnxruntime', 'openvino', 'model_signing', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 10
    assert done.stderr.strip() in ("[]", "['numpy']")
    assert json.loads(done.stdout)["schema"] == "tmi-inspection/1"


def test_inspect_refuses_a_bundle_with_files_missing_added_or_of_another_size(copy):
    (copy / "more.txt").write_text("x")
    assert tmi("inspect", copy).code == 6
    (copy / "more.txt").unlink()
    (copy / "MODEL_CARD.md").write_text("I am safe for clinical use.")
    outcome = tmi("inspect", copy)
    assert outcome.code == 6
    assert "MODEL_CARD.md was changed after the export" in outcome.err


def test_a_real_manifest_satisfies_the_published_schema(tiny_bundle):
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    jsonschema.validate(data, manifest_schema())
    for change in (
        lambda d: d.update(schema="tmi-bundle/3"),
        lambda d: d.update(colour=1),
        lambda d: d.pop("folds"),
        lambda d: d.update(threshold=1.5),
        lambda d: d["graphs"][0].update(role="audio"),
        lambda d: d["files"]["golden.safetensors"].update(sha256="short"),
    ):
        spoilt = json.loads(json.dumps(data))
        change(spoilt)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, manifest_schema())


def test_the_manifest_names_its_largest_batch_and_hardware(tiny_bundle):
    manifest = manifest_at(tiny_bundle)
    assert manifest.golden["largest_batch"] == 8
    assert set(manifest.extra["hardware"]) == {"machine", "cpu", "system"}
    assert replace(manifest, extra={}) != manifest
