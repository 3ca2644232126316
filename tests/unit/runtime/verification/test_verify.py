"""`tmi verify`, `tmi inspect`, `tmi sign`, and the startup self-test."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from factories.other_user import OTHER_UID, umask
from factories.planted_faults import manifest_at, reseal, write_key_pair
from factories.tmi_command import tmi
from tmi.runtime import Predictor
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.manifest import manifest_schema
from tmi.runtime.bundle.manifest_records import Hardware
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.host import hardware
from tmi.runtime.engines.onnxruntime import OnnxEngine
from tmi.runtime.engines.registry import ENGINES, missing_requirement
from tmi.runtime.verification.self_test import self_test_key


@pytest.fixture
def new_machine(tmp_path, monkeypatch) -> Path:
    """An empty cache, like on a machine that has opened no bundle yet."""
    folder = tmp_path / "new-cache"
    monkeypatch.setenv("TMI_CACHE", str(folder))
    return folder


@pytest.fixture
def copy(tiny_bundle, tmp_path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def add_relative_error(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Give the outputs of ONNX Runtime a relative error."""
    original = OnnxEngine._run

    def run(self, spec, loaded, inputs):
        return {k: v * np.float32(1 + factor) for k, v in original(self, spec, loaded, inputs).items()}

    monkeypatch.setattr(OnnxEngine, "_run", run)


def test_verify_validates_every_installed_engine(tiny_bundle):
    """Without `--engine` every installed engine with graphs in the bundle is validated."""
    outcome = tmi("verify", tiny_bundle, "--threads", 1, "--all")
    assert outcome.code == 0, outcome.err
    assert "files as exported" in outcome.out
    assert "not signed" in outcome.out
    rows = [line.split("│")[1:4] for line in outcome.out.splitlines() if line.startswith("│")]
    validated = {row[0].strip() for row in rows}
    here = {n for n, s in ENGINES.items() if not s.gpu and missing_requirement(n) is None}
    assert validated == {"files", *(n for n in here if ENGINES[n].artefact != "onnx-int8")}
    assert {row[1].strip() for row in rows if row[0].strip() == "onnx"} >= {"logits", "float64", "largest-batch"}
    assert "parity checks passed" in outcome.out.splitlines()[-1]


def test_verify_summarises_in_one_row_for_each_engine(tiny_bundle, monkeypatch):
    """Without `--all` an engine has one row; failed checks come first, in full, then the engine that they concern."""
    outcome = tmi("verify", tiny_bundle, "--engine", "onnx", "--engine", "openvino", "--threads", 1)
    assert outcome.code == 0, outcome.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in outcome.out.splitlines() if "│" in line]
    assert [(row[0], row[-1]) for row in rows] == [("files", "ok"), ("onnx", "ok"), ("openvino", "ok")]
    assert sum(int(row[1].split(" of ")[0]) for row in rows) == int(outcome.out.split("all ")[-1].split()[0])
    add_relative_error(monkeypatch, 1e-3)
    lines = tmi("verify", tiny_bundle, "--engine", "openvino", "--engine", "onnx", "--threads", 1).out.splitlines()
    (title,) = [n for n, line in enumerate(lines) if "parity checks failed" in line]
    states = [n for n, line in enumerate(lines) if re.search("FAILED|│ ok ", line)]
    assert title < states[0]
    assert "onnx" in lines[states[0]]
    assert "FAILED" in lines[states[0]]


def test_verify_json_lists_every_check(tiny_bundle):
    """The document lists every check, the hardware and the multiples of float32's own error."""
    document = tmi("verify", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json").document
    assert document["schema"] == "tmi-verification/1"
    assert document["passed"] is True
    assert document["engines"] == ["onnx"]
    assert document["bundle"]["digest"] == open_bundle(tiny_bundle).digest
    assert set(document["hardware"]) == {"machine", "cpu", "system"}
    multiples = [g["multiple"] for g in document["gates"] if g["gate"] == "float64"]
    assert len(multiples) == 5
    assert all(0 < m < 20 for m in multiples)


def test_failed_check_exits_with_4_and_a_fix(tiny_bundle, monkeypatch):
    """A failed check gives exit code 4, a table and a fix."""
    add_relative_error(monkeypatch, 1e-3)
    outcome = tmi("verify", tiny_bundle, "--engine", "onnx", "--threads", 1)
    assert outcome.code == 4
    assert "FAILED" in outcome.out
    assert "parity checks failed, first features of ct-0 (onnx): relative to eager float32" in outcome.err
    assert "docs/parity.md" in outcome.err
    document = tmi("verify", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json").document
    assert document["passed"] is False


def test_missing_engine_exits_with_5(tiny_bundle, monkeypatch):
    """A missing engine, or none at all, gives exit code 5."""
    monkeypatch.setattr("tmi.runtime.engines.registry.installed", lambda name: False)
    requested = tmi("verify", tiny_bundle, "--engine", "openvino")
    assert requested.code == 5
    assert "engine openvino needs the package openvino" in requested.err
    every = tmi("verify", tiny_bundle)
    assert every.code == 5
    assert "no engine can run bundle" in every.err


def test_verify_requires_a_bundle(tmp_path):
    """A missing bundle or an unknown engine is a usage error."""
    outcome = tmi("verify", cwd=tmp_path)
    assert outcome.code == 2
    assert "bundle bundle (the default)" in outcome.err
    assert tmi("verify", tmp_path, "--engine", "abacus").code == 2


def test_only_the_signers_key_is_accepted(copy, tmp_path, good_cases):
    """A signed bundle verifies with the signer's key, wherever it lies, and with no other."""
    private, public = write_key_pair(tmp_path, "signer")
    _, other_key = write_key_pair(tmp_path, "other")
    signed = tmi("sign", copy, "--key", private)
    assert signed.code == 0, signed.err
    assert "signature.sig; check with: tmi verify" in signed.out
    assert tmi("sign", copy, "--key", private).code == 2  # not twice without --force
    with_key = tmi("verify", copy, "--engine", "onnx", "--threads", 1, "--key", public)
    assert with_key.code == 0, with_key.err
    assert "signed by the key given" in with_key.out
    without = tmi("verify", copy, "--engine", "onnx", "--threads", 1)
    assert "signed, not checked: give the signer's public key with --key" in without.out
    other = tmi("predict", good_cases[0], "--bundle", copy, "--engine", "onnx", "--key", other_key)
    assert other.code == 6
    assert "the signature is not by other.public.pem" in other.err
    elsewhere = copy.rename(tmp_path / "renamed")
    assert tmi("predict", good_cases[0], "--bundle", elsewhere, "--engine", "onnx", "--key", public).code == 0


def test_invalid_key_is_a_usage_error(copy, tmp_path):
    """A file that is not a key, or a missing one, is a usage error and leaves nothing behind."""
    (tmp_path / "no.pem").write_text("hello")
    for arguments in (("sign", copy), ("verify", copy, "--engine", "onnx")):
        private, _ = write_key_pair(tmp_path, "signer")
        if arguments[0] == "verify":
            assert tmi("sign", copy, "--key", private, "--force").code == 0
        for name, message in (("no.pem", "is not a p"), ("nowhere.pem", "does not exist")):
            outcome = tmi(*arguments, "--key", tmp_path / name)
            assert outcome.code == 2
            assert message in outcome.err
    assert not list(tmp_path.glob(".*"))


def test_damaged_bundle_is_not_signed(copy, tmp_path):
    """A changed bundle is not signed."""
    private, _ = write_key_pair(tmp_path, "signer")
    (copy / "scalers" / "fold0.json").write_text("{}")
    assert tmi("sign", copy, "--key", private).code == 6
    assert not (copy / "signature.sig").exists()


def test_self_test_runs_once_and_is_recorded(tiny_bundle, good_cases, new_machine):
    """The self-test runs at the first start, is cached, and is stated in every document."""

    def predict(*more: object):
        return tmi(
            "predict", good_cases[0], "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json", *more
        )

    skipped = predict("--no-verify")
    assert skipped.document["engine"]["verified"] == "no"
    assert "the startup self-test is skipped (--no-verify)" in skipped.err
    assert not new_machine.exists()
    first = predict()
    assert first.document["engine"]["verified"] == "now"
    assert "first use of this bundle with onnx on this machine: running the self-test" in first.err
    assert "self-test passed" in first.err
    (file,) = (new_machine / "opened").iterdir()
    assert json.loads(file.read_text())["combination"] == self_test_key(open_bundle(tiny_bundle), "onnx")
    second = predict()
    assert second.document["engine"]["verified"] == "before"
    assert "self-test" not in second.err
    assert second.document["results"][0]["probability"] == first.document["results"][0]["probability"]


def test_self_test_repeats_for_another_combination(tiny_bundle, copy, new_machine, monkeypatch):
    """Another engine, version, processor or bundle is tested again; a copy of the bundle is not."""

    def opened(folder: Path = tiny_bundle, engine: str = "onnx") -> str:
        with Predictor.open(folder, engine=engine, threads=1) as predictor:
            return predictor.engine_record.verified

    assert (opened(), opened()) == ("now", "before")
    assert opened(engine="openvino") == "now"
    assert opened(copy) == "before"  # the same bundle in another folder
    reseal(copy, created="2020-01-01T00:00:00+00:00")
    assert opened(copy) == "now"
    with monkeypatch.context() as patch:
        patch.setattr("tmi.runtime.verification.self_test.cpu_name", lambda: "Another CPU")
        assert opened() == "now"
    with monkeypatch.context() as patch:
        patch.setattr("tmi.runtime.verification.self_test.version", lambda name: "99.0.0")
        assert opened() == "now"
    assert opened() == "before"


def test_failed_self_test_is_not_cached(tiny_bundle, new_machine, monkeypatch):
    """A failure of a float32 engine is not cached; the test runs again at the next start."""
    with monkeypatch.context() as patch:
        add_relative_error(patch, 1e-3)
        for _ in range(2):
            with pytest.raises(ParityError, match="on this machine engine onnx does not match the validated model"):
                Predictor.open(tiny_bundle, engine="onnx", threads=1)
    assert not new_machine.exists()
    with Predictor.open(tiny_bundle, engine="onnx", threads=1) as predictor:
        assert predictor.engine_record.verified == "now"


def test_result_of_another_user_does_not_count(tiny_bundle, new_machine):
    """The self-test runs again if its record belongs to another user or can be written by one; its mode is 0600."""

    def opened() -> str:
        with Predictor.open(tiny_bundle, engine="onnx", threads=1) as predictor:
            return predictor.engine_record.verified

    with umask(0o000):
        assert opened() == "now"
    (file,) = (new_machine / "opened").iterdir()
    assert (stat.S_IMODE(file.parent.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    assert opened() == "before"
    for path, mode in ((file, 0o620), (file.parent, 0o702)):
        path.chmod(mode)
        assert opened() == "now"
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (file, file.parent):
        os.chown(path, OTHER_UID, -1)
        assert opened() == "now"
        assert opened() == ("before" if path == file else "now")  # nothing is stored in a folder of another user


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"combination": {"bundle": "another"}}'])
def test_invalid_cache_entry_is_ignored(text, tiny_bundle, new_machine):
    """A damaged cache file, or one of another combination, does not count as a passed test."""
    Predictor.open(tiny_bundle, engine="onnx", threads=1).close()
    (file,) = (new_machine / "opened").iterdir()
    file.write_text(text)
    with Predictor.open(tiny_bundle, engine="onnx", threads=1) as predictor:
        assert predictor.engine_record.verified == "now"


def test_unwritable_cache_is_reported(tiny_bundle, tmp_path, monkeypatch):
    """A cache folder that cannot be written is reported and does not stop a prediction."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "file"))
    lines: list[str] = []
    with Predictor.open(tiny_bundle, engine="onnx", threads=1, log=lines.append) as predictor:
        assert predictor.engine_record.verified == "now"
    assert "it cannot be cached" in lines[-1]
    assert "TMI_CACHE" in lines[-1]


def test_without_a_cache_every_start_is_tested(monkeypatch, tiny_bundle, tmp_path):
    """With `TMI_CACHE=off` the self-test runs at every start and writes nothing."""
    monkeypatch.setenv("TMI_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        lines: list[str] = []
        with Predictor.open(tiny_bundle, engine="onnx", threads=1, log=lines.append) as predictor:
            assert predictor.engine_record.verified == "now"
        assert "not cached, caching is off" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_inspect_summarises_a_bundle(tiny_bundle):
    """`tmi inspect` prints run, classes, folds, versions, engines and graphs."""
    outcome = tmi("inspect", tiny_bundle)
    assert outcome.code == 0, outcome.err
    manifest = open_bundle(tiny_bundle).manifest
    for text in ("preset tiny, a synthetic cohort of 6 cases", "good, bad; bad if p(bad) >= 0.5", "0: ct-0, text-0",
                 "not signed", f"torch {manifest.versions['torch']}", "openvino: ready", "logits [B,2,2]",
                 "contents not hashed (tmi verify)", "for research use only"):  # fmt: skip
        assert text in outcome.out, text


def test_inspect_json_omits_long_parts(tiny_bundle):
    """`--json` holds the manifest without files and config, and their totals."""
    document = tmi("inspect", tiny_bundle, "--json").document
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert document["schema"] == "tmi-inspection/2"
    assert document["files"] == len(manifest["files"])
    assert document["bytes"] == sum(f["bytes"] for f in manifest["files"].values())
    assert document["manifest"] == {k: v for k, v in manifest.items() if k not in ("files", "config")}


def test_inspect_is_fast_and_light(tiny_bundle):
    """`tmi inspect` imports no engine and no image reader."""
    program = (
        "import sys, time\nstart = time.perf_counter()\nfrom tmi.toolkit.cli.main import main\n"
        "sys.argv = ['tmi', 'inspect', sys.argv[1], '--json']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'nibabel', 'onnxruntime', 'openvino', 'model_signing', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", program, str(tiny_bundle)], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - start < 10
    assert process.stderr.strip() in ("[]", "['numpy']")
    assert json.loads(process.stdout)["schema"] == "tmi-inspection/2"


def test_inspect_rejects_changed_file_lists(copy):
    """Added, missing or resized files give exit code 6."""
    (copy / "more.txt").write_text("x")
    assert tmi("inspect", copy).code == 6
    (copy / "more.txt").unlink()
    (copy / "MODEL_CARD.md").write_text("I am safe for clinical use.")
    outcome = tmi("inspect", copy)
    assert outcome.code == 6
    assert "MODEL_CARD.md was changed after the export" in outcome.err


def test_manifest_satisfies_its_schema(tiny_bundle):
    """An exported manifest satisfies the JSON Schema, and invalid changes do not."""
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    jsonschema.validate(data, manifest_schema())
    for change in (
        lambda d: d.update(schema="tmi-bundle/2"),
        lambda d: d.update(colour=1),
        lambda d: d.pop("folds"),
        lambda d: d.update(threshold=1.5),
        lambda d: d["graphs"][0].update(role="audio"),
        lambda d: d["files"]["golden.safetensors"].update(sha256="short"),
    ):
        changed = json.loads(json.dumps(data))
        change(changed)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, manifest_schema())


def test_manifest_names_largest_batch_and_hardware(tiny_bundle):
    """The manifest states the largest checked batch and the exporting hardware."""
    manifest = manifest_at(tiny_bundle)
    assert manifest.golden.largest_batch == 8
    assert manifest.hardware == Hardware(**hardware())
