"""Artefacts added to a bundle of the same run: `tmi export --add`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from factories.faulty_exporter import plant
from factories.paths import ROOT, file_digests
from factories.planted_faults import manifest_at, reseal, rewrite_manifest, write_key_pair
from factories.tmi_command import tmi
from tmi.export.bundle import stages
from tmi.export.bundle.additions import without_artefacts
from tmi.export.bundle.rebuild import compare_with_rebuild
from tmi.export.bundle.sbom import sbom
from tmi.export.bundle.writer import add_to_bundle, export, export_run
from tmi.export.graphs import partition, torchscript
from tmi.runtime.bundle.manifest import MODEL_CARD_FILE, SBOM_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification.verify import verify_bundle
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.run_folder import RunFolder

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"
CHANGED = {"manifest.json", "manifest.json.sha256", "MODEL_CARD.md"}
"""Files of a bundle that name the addition."""


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory, nano_run, nano_bundle) -> tuple[Path, Counter[Path]]:
    """`nano_run` exported as ONNX alone, and how often each safetensors file was opened; read-only."""
    folder = tmp_path_factory.mktemp("onnx") / "bundle"
    reads: Counter[Path] = Counter()
    safe_open = partition.safe_open

    def counted(path, *arguments, **options):
        reads[Path(path)] += 1
        return safe_open(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        plant(patch, "onnx", graph="none", valid_bundle=nano_bundle)
        patch.setattr(partition, "safe_open", counted)
        export_run(nano_run, folder)
    return folder, reads


@pytest.fixture(scope="module")
def onnx_bundle(onnx_export) -> Path:
    return onnx_export[0]


def test_weights_of_a_fold_are_read_twice(onnx_export, nano_run):
    """Once for the networks that are run and written, and once for the audit."""
    _, reads = onnx_export
    assert {path: n for path, n in reads.items() if nano_run in path.parents} == {
        nano_run / f"fold{fold}" / "model.safetensors": 2 for fold in (0, 1)
    }


def test_stages_are_called_in_order(monkeypatch):
    """An export runs every stage, and a build the tail from `tensorrt` on."""
    called: list[str] = []
    monkeypatch.setattr(stages, "import_target", lambda target: lambda context: called.append(target.split(":")[1]))
    stages.run_stages(object())
    assert called == list(stages.STAGES)
    called.clear()
    stages.run_stages(object(), start="tensorrt")
    assert called == ["tensorrt", "document", "publish"]


@pytest.fixture(scope="module")
def extended(tmp_path_factory, nano_run, onnx_bundle) -> Path:
    """`onnx_bundle`, signed, with TorchScript added by the command; read-only."""
    folder = tmp_path_factory.mktemp("extended") / "bundle"
    shutil.copytree(onnx_bundle, folder)
    (folder / SIGNATURE_FILE).write_text("{}")
    outcome = tmi("export", nano_run, "--add", "--engine", "torchscript", "--out", folder)
    assert outcome.code == 0, outcome.err
    assert "signature removed: it covered the old files; sign again with `tmi sign" in outcome.err
    assert ": torchscript\n" in outcome.out
    return folder


@pytest.fixture
def copy(onnx_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(onnx_bundle, tmp_path / "bundle"))


def test_added_graphs_are_those_of_one_export(extended, onnx_bundle, nano_bundle):
    """The files are those of an export of both at once, and the old ones and their records stay byte for byte."""
    before, after, together = file_digests(onnx_bundle), file_digests(extended), file_digests(nano_bundle)
    assert after.keys() == together.keys()
    assert {name for name in after if after[name] != together[name]} == CHANGED
    assert {name for name in before if before[name] != after[name]} == {*CHANGED, "sbom.cdx.json"}
    old, new = manifest_at(onnx_bundle).parity, manifest_at(extended).parity
    assert new[: len(old)] == old
    assert {r.artefact for r in new[len(old) :]} == {"torchscript"}
    assert {repr(r) for r in new} == {repr(r) for r in manifest_at(nano_bundle).parity}


def test_bundle_says_what_was_added(extended):
    """Manifest and model card name the artefact, the time and the versions; the signature is gone."""
    manifest = open_bundle(extended).manifest
    (addition,) = manifest.additions
    assert addition.artefacts == ("torchscript",)
    assert addition.versions == manifest.versions
    card = (extended / MODEL_CARD_FILE).read_text()
    assert f"Added {addition.created}: torchscript, with machine" in card
    assert not (extended / SIGNATURE_FILE).exists()
    assert verify_bundle(extended, engines=["torchscript"], threads=1).passed


@pytest.mark.slow
def test_rebuild_repeats_the_additions(extended, nano_run, nano_bundle, monkeypatch):
    """`tmi verify --rebuild` exports and adds in the same order, and finds the same bytes."""
    plant(monkeypatch, "onnx", graph="none", valid_bundle=nano_bundle)
    assert compare_with_rebuild(open_bundle(extended), nano_run).files == len(manifest_at(extended).files)


@pytest.mark.long
def test_rebuild_follows_a_replacement_and_ignores_trusted_keys(
    onnx_bundle, nano_run, nano_bundle, tmp_path, monkeypatch
):
    """A bundle whose only artefact was replaced is rebuilt too; the rebuilt one, which nobody signed, needs no key."""
    plant(monkeypatch, "onnx", graph="none", valid_bundle=nano_bundle)
    folder = Path(shutil.copytree(onnx_bundle, tmp_path / "bundle"))
    add_to_bundle(nano_run, folder, artefacts=("onnx",), force=True)
    _, public = write_key_pair(tmp_path, "signer")
    (tmp_path / "tmi.toml").write_text(f"require_signature = true\ntrusted_keys = [{public.name!r}]\n")
    monkeypatch.chdir(tmp_path)
    bundle = open_bundle(folder)
    assert compare_with_rebuild(bundle, nano_run).files == len(bundle.manifest.files)


@pytest.mark.parametrize("text", ["[]", '"bundle"', "{"])
def test_damaged_manifest_is_damage(copy, nano_run, text):
    """A manifest that is no object is exit code 6, as for every other command."""
    rewrite_manifest(copy, text)
    with pytest.raises(DamagedError):
        add_to_bundle(nano_run, copy, artefacts=("torchscript",))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp16"}, "a precision is for TensorRT engines"), ({"target": "sm80"}, "target")],
)
def test_function_rejects_what_the_command_rejects(nano_run, tmp_path, options, message):
    """A precision or a target without an engine that has one is wrong usage, and nothing is written."""
    with pytest.raises(UsageError, match=message):
        export(nano_run, tmp_path / "bundle", engines=("onnx",), **options)
    assert not (tmp_path / "bundle").exists()


def test_earlier_components_stay_in_the_sbom(nano_bundle):
    """Packages that made the earlier artefacts stay listed after an addition with other versions."""
    text = (nano_bundle / SBOM_FILE).read_text()
    earlier, now = json.loads(text), json.loads(text)
    earlier["components"][0] |= {"bom-ref": "numpy@0.1", "name": "numpy", "version": "0.1"}
    after = json.loads(sbom(manifest_at(nano_bundle), earlier=earlier))
    (kept,) = [c for c in after["components"] if c not in now["components"]]
    assert kept == earlier["components"][0]
    assert {c["bom-ref"] for c in now["components"]} < {c["bom-ref"] for c in after["components"]}


def test_existing_artefact_needs_force(copy, nano_run):
    """An artefact that the bundle has is named; nothing changes."""
    before = file_digests(copy)
    with pytest.raises(UsageError, match=r"has onnx already") as caught:
        add_to_bundle(nano_run, copy, artefacts=("torchscript", "onnx"))
    assert "--force" in caught.value.fix
    assert file_digests(copy) == before


def test_forced_artefact_leaves_nothing_behind(extended, onnx_bundle, tmp_path):
    """What is written again is removed first, with its files, evidence, records and addition."""
    folder = Path(shutil.copytree(extended, tmp_path / "bundle"))
    base = without_artefacts(open_bundle(folder), ["torchscript"], None)
    assert file_digests(folder).keys() == file_digests(onnx_bundle).keys()
    before = manifest_at(onnx_bundle)
    assert (base.manifest.graphs, base.manifest.parity) == (before.graphs, before.parity)
    assert (base.manifest.additions, base.manifest.engines_not_validated) == ((), before.engines_not_validated)


@pytest.mark.slow
def test_forced_artefact_replaces_files_and_records(extended, nano_run, tmp_path):
    """With force the artefact is written and checked again, and has one set of records."""
    folder = Path(shutil.copytree(extended, tmp_path / "bundle"))
    bundle = add_to_bundle(nano_run, folder, artefacts=("torchscript",), force=True)
    assert sorted(map(repr, bundle.manifest.parity)) == sorted(map(repr, manifest_at(extended).parity))
    assert [a.artefacts for a in bundle.manifest.additions] == [("torchscript",)]


def other_run(run: Path, folder: Path, **state: object) -> Path:
    """A copy of a run with other values in its record."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | state))
    return folder


def change_weight(run: Path) -> None:
    path = run / "fold1" / "model.safetensors"
    state = load_file(path)
    name = next(n for n in state if n.startswith("fusion.") and n.endswith("weight"))
    state[name].view(-1)[0] += 1e-6
    save_file(state, path)
    RunFolder.open(run).finish()


def test_bundle_of_another_run_is_rejected(copy, nano_run, tmp_path):
    """The message names the difference and the bundle's own run."""
    before = file_digests(copy)
    run = other_run(nano_run, tmp_path / "other", name="other")
    with pytest.raises(UsageError, match=r"is not an export of run .*other: its run has another name") as caught:
        add_to_bundle(run, copy, artefacts=("torchscript",))
    assert f"name its own run ({manifest_at(copy).run.name})" in caught.value.fix
    assert file_digests(copy) == before


def test_other_weights_are_rejected(copy, nano_run, tmp_path):
    """A run with the same record and one other weight is not the bundle's."""
    before, state = file_digests(copy), json.loads((nano_run / "run.json").read_text())
    run = other_run(nano_run, tmp_path / "other")
    change_weight(run)
    record = json.loads((run / "run.json").read_text())
    same = {key: value for key, value in state.items() if key != "files"}
    (run / "run.json").write_text(json.dumps(record | same))
    with pytest.raises(DamagedError, match=r"does not hold the weights of run .*fusion \(onnx\): folds\.1\."):
        add_to_bundle(run, copy, artefacts=("torchscript",))
    assert file_digests(copy) == before


def test_failed_check_leaves_the_bundle(copy, nano_run, monkeypatch):
    """If an added file fails a check, the exit code is 4 and the bundle stays as it was."""
    before, write = file_digests(copy), torchscript.write_torchscript
    wrong = iter([True])

    def nudged(module, spec, example, path):
        if next(wrong, False):
            next(module.parameters()).view(-1)[0] += 1.0
        write(module, spec, example, path)

    monkeypatch.setattr(torchscript, "write_torchscript", nudged)
    outcome = tmi("export", nano_run, "--add", "--engine", "torchscript", "--out", copy)
    assert outcome.code == 4
    assert "the bundle was left as it was" in outcome.err
    assert file_digests(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_other_version_is_rejected(copy, nano_run):
    """A bundle that another version exported is not extended; the fix exports all engines again."""
    versions = {**manifest_at(copy).versions, "tmi-clnet": "0.0.1"}
    reseal(copy, versions=versions)
    with pytest.raises(UsageError, match=r"was exported by tmi 0\.0\.1, this is tmi") as caught:
        add_to_bundle(nano_run, copy, artefacts=("torchscript",))
    assert caught.value.fix == "export the run again with --engine onnx,torchscript --force"


def test_previous_format_is_rejected(nano_run, tmp_path):
    """A bundle of an earlier schema is read, and not extended."""
    copy = Path(shutil.copytree(PUBLISHED, tmp_path / "bundle"))
    before = file_digests(copy)
    with pytest.raises(UsageError, match=r"has the format tmi-bundle/2, which cannot be extended"):
        add_to_bundle(nano_run, copy, artefacts=("torchscript",))
    assert file_digests(copy) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--add", "--engine", "torchscript", "--out", "nowhere"), "nowhere is not a bundle to add to"),
        (("--add",), "--add needs the engines to add"),
        (("--add", "--engine", "onnx", "--no-weights"), "--no-weights is for a new bundle"),
        (("--engine", "onnx,tensorflow"), "unknown engine 'tensorflow' to export"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, message, nano_run, tmp_path):
    """Options that contradict each other are reported before any work."""
    outcome = tmi("export", nano_run, *arguments, cwd=tmp_path)
    assert outcome.code == 2
    assert message in outcome.err
