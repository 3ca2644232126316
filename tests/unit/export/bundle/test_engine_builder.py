"""`tmi build` works on a copy of the bundle that it opened, and writes an older manifest in the present form."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from factories.paths import ROOT
from factories.planted_faults import reseal, rewrite_manifest
from tmi.export.bundle.additions import staged_copy
from tmi.export.bundle.context import ExportContext, ExportSettings
from tmi.export.bundle.delivery_stages import plan_fix
from tmi.export.bundle.engine_builder import restate_claims
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.manifest import GOLDEN_CASE_FILE, MANIFEST_FILE, part_digests
from tmi.runtime.bundle.reader import fingerprint, open_bundle, write_manifest
from tmi.runtime.verification.preprocessing_check import check_preprocessing, read_golden_case
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.storage.hashing import canonical_json
from tmi.toolkit.storage.serialization import to_json

WITHOUT_DEFAULT = ("train", "accumulate")
"""Section and key of the config that a version before it does not write."""
PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"


def test_copy_of_an_exchanged_bundle_is_rejected(tmp_path):
    """Engines are not built from a consistent bundle that took the opened one's place while it was copied."""
    folder = Path(shutil.copytree(PUBLISHED, tmp_path / "bundle"))
    bundle = open_bundle(folder)
    assert staged_copy(bundle, tmp_path / "stage").digest == bundle.digest
    write_manifest(folder, replace(bundle.manifest, threshold=0.1))
    with pytest.raises(DamagedError, match="was exchanged during the build"):
        staged_copy(bundle, tmp_path / "stage")


def of_an_earlier_version(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle whose config lacks a key that has a default now; the golden case states that config."""
    shutil.copytree(bundle, folder)
    document = json.loads((folder / MANIFEST_FILE).read_text())
    section, key = WITHOUT_DEFAULT
    del document["config"][section][key]
    arrays, stated = read_golden_case(open_bundle(folder))
    stated["config"] = f'"{part_digests(document).config}"'
    save_file(arrays, folder / GOLDEN_CASE_FILE, metadata=stated)
    return seal(folder, document)


def seal(folder: Path, document: dict[str, Any]) -> Path:
    """Write a manifest with fresh digests."""
    document["files"] = {name: to_json(spec) for name, spec in fingerprint(folder).items()}
    rewrite_manifest(folder, canonical_json(document))
    return folder


def test_manifest_of_an_earlier_version_is_written_in_the_present_form(nano_bundle, tmp_path):
    """The golden case states config and run of the new file, after it was compared with the old one."""
    folder = of_an_earlier_version(nano_bundle, tmp_path / "bundle")
    bundle = open_bundle(folder)
    assert next(iter(check_preprocessing(bundle))).passed
    reseal(folder)
    assert not next(iter(check_preprocessing(open_bundle(folder)))).passed, "without the statement the build is damage"
    shutil.rmtree(folder)
    bundle = open_bundle(of_an_earlier_version(nano_bundle, folder))
    restate_claims(bundle)
    reseal(folder)
    assert next(iter(check_preprocessing(open_bundle(folder)))).passed


def test_forged_config_is_not_stated_anew(nano_bundle, tmp_path):
    """A config that the golden case does not state ends the build, and is not confirmed by it."""
    folder = of_an_earlier_version(nano_bundle, tmp_path / "bundle")
    document = json.loads((folder / MANIFEST_FILE).read_text())
    document["config"]["ct"]["window_hu"] = [-160.0, 240.0]
    with pytest.raises(ParityError, match="config of the manifest changed after the export; the bundle was left"):
        restate_claims(open_bundle(seal(folder, document)))


@pytest.mark.parametrize("build", [False, True])
def test_hint_names_an_option_of_the_command_that_has_it(build, nano_bundle, tmp_path):
    """After a failed TensorRT engine `tmi export` hints at its own `--precision`, `tmi build` at `tmi export`."""
    context = ExportContext(
        out=tmp_path / "bundle",
        folder=tmp_path,
        artefacts=("trt",),
        settings=ExportSettings(),
        progress=print,
        created="",
        build=build,
    )
    context.manifest = open_bundle(nano_bundle).manifest
    hint = plan_fix(context)
    again = f"tmi export RUN --add --engine trt --force --out {tmp_path / 'bundle'} with --precision auto"
    assert again in hint if build else hint.startswith("try --precision auto")
