"""Cache of prepared images: hits equal the prepared case; a changed input or a damaged entry is a miss."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import tmi.toolkit.preprocessing.pipeline as prepare_module
from factories.bad_cases import FAULTS, write_bad_cases
from factories.cases import write_case
from factories.paths import ROOT
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.preprocessing.cache import CODE_PARTS, PreparedCache, tree_digest
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.radiomics.extractor import ExtractedFeatures


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def case(tmp_path) -> Case:
    """A case with a warning: its liver is small."""
    return open_case(write_case(tmp_path / "P001"))


def prepare(case: Case, config: Config, cache: PreparedCache | None = None) -> PreparedCase:
    return prepare_case(case, config, load_schema(), cache=cache)


def same(one: PreparedCase, other: PreparedCase) -> bool:
    arrays = all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() and a.shape == b.shape and b.flags.writeable
        for a, b in ((one.ct_1DHW, other.ct_1DHW), (one.radiomics_F, other.radiomics_F))
    )
    rest = [(c.case_id, c.patient_id, c.text, c.warnings) for c in (one, other)]
    return arrays and rest[0] == rest[1]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.is_dir() else []


def test_cached_case_equals_prepared_case(case, micro_config, monkeypatch):
    """A hit returns the same bits and warnings without reading the image."""
    uncached, cache = prepare(case, micro_config), PreparedCache()
    first = prepare(case, micro_config, cache)
    assert (cache.hits, cache.stored) == (0, 1)
    monkeypatch.setattr(prepare_module, "read_ct", None)  # the image is not read again
    second = prepare(case, micro_config, cache)
    assert (cache.hits, cache.stored) == (1, 1)
    assert [(i.code, i.message) for i in uncached.warnings] == [("liver-volume", "liver.nii.gz covers 493 mL")]
    assert same(uncached, first)
    assert same(uncached, second)


def _touch_ct(case: Case, config: Config) -> tuple[Case, Config]:
    image = nib.load(case.ct)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] += 1
    nib.save(nib.Nifti1Image(array, image.affine), case.ct)
    return case, config


def _touch_mask(case: Case, config: Config) -> tuple[Case, Config]:
    image = nib.load(case.mask)
    array = np.asarray(image.dataobj).copy()
    array[array.shape[0] // 2, array.shape[1] // 2, array.shape[2] // 2] = 1
    array[-1, -1, -1] = 1
    nib.save(nib.Nifti1Image(array, image.affine), case.mask)
    return case, config


CHANGES = {
    "a voxel of the CT": _touch_ct,
    "a voxel of the mask": _touch_mask,
    "the mask's absence": lambda case, config: (case.mask.unlink() or case, config),
    "the mask's label": lambda case, config: (replace(case, mask_label=1), config),
    "the window": lambda case, config: (case, replace(config, ct=replace(config.ct, window_hu=(-70.0, 131.0)))),
    "the scale": lambda case, config: (case, replace(config, ct=replace(config.ct, scale_to=(0.0, 255.0)))),
    "the shape": lambda case, config: (case, replace(config, ct=replace(config.ct, shape_DHW=(12, 24, 23)))),
    "the resampling": lambda case, config: (case, replace(config, ct=replace(config.ct, depth_resampling="nearest"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_input_is_prepared_again(case, micro_config, change):
    """Any changed input is a miss, even with an unchanged modification time."""
    cache, time = PreparedCache(), os.stat(case.ct).st_mtime_ns
    prepare(case, micro_config, cache)
    changed, config = CHANGES[change](case, micro_config)
    for file in (case.ct, case.mask):
        if file.is_file():
            os.utime(file, ns=(time, time))
    prepared = prepare(changed, config, cache)
    assert (cache.hits, cache.stored) == (0, 2)
    assert same(prepared, prepare(changed, config))


def test_other_code_or_package_version_is_a_miss(case, micro_config, monkeypatch):
    """Another code digest or package version is a miss."""
    cache = PreparedCache()
    prepare(case, micro_config, cache)
    with monkeypatch.context() as patch:
        patch.setattr("tmi.toolkit.preprocessing.cache.code_digest", lambda: "another")
        prepare(case, micro_config, cache)
    with monkeypatch.context() as patch:
        patch.setattr("tmi.toolkit.preprocessing.cache.version", lambda name: "0.0")
        prepare(case, micro_config, cache)
    assert (cache.hits, cache.stored) == (0, 3)


def test_record_is_read_again_on_a_hit(case, micro_config):
    """The clinical record is not part of an entry."""
    cache = PreparedCache()
    before = prepare(case, micro_config, cache)
    record = json.loads(case.clinical.read_text())
    case.clinical.write_text(json.dumps(record | {"report": "Ascites has resolved."}))
    after = prepare(case, replace(micro_config, clinical=replace(micro_config.clinical, rendering="flags")), cache)
    assert cache.hits == 1
    assert after.text.endswith("Ascites has resolved.")
    assert "(normal)" in after.text
    assert after.ct_1DHW.tobytes() == before.ct_1DHW.tobytes()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "emptied", "another entry's content"])
def test_damaged_entry_is_replaced(case, micro_config, cache_folder, tmp_path, damage):
    """A damaged entry is a miss and is replaced."""
    cache = PreparedCache()
    prepared = prepare(case, micro_config, cache)
    (entry,) = entries(cache_folder)
    data = bytearray(entry.read_bytes())
    if damage == "a flipped bit":
        data[len(data) // 2] ^= 1
    elif damage == "another entry's content":
        prepare(open_case(write_case(tmp_path / "P002", seed=2)), micro_config, cache)
        (other,) = set(entries(cache_folder)) - {entry}
        data = bytearray(other.read_bytes())
    entry.write_bytes(b"" if damage == "emptied" else data[: len(data) // 2] if damage == "cut short" else data)
    cache = PreparedCache()
    assert same(prepare(case, micro_config, cache), prepared)
    assert (cache.hits, cache.stored) == (0, 1)
    assert same(prepare(case, micro_config, cache), prepared)
    assert cache.hits == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_rejection_is_the_same_with_cache(case, micro_config, cache_folder, tmp_path, fault):
    """A rejection is the same with and without the cache and is not stored."""
    (folder,) = (p for p in write_bad_cases(tmp_path / "bad", case.folder) if p.name == fault)
    rejections = []
    for cache in (None, PreparedCache(), PreparedCache()):
        with pytest.raises(InputRejectedError) as error:
            prepare(open_case(folder), micro_config, cache)
        rejections.append((error.value.code, str(error.value), error.value.fix))
    assert rejections[0][0] == FAULTS[fault].code
    assert rejections[0] == rejections[1] == rejections[2]
    assert entries(cache_folder) == []


def test_hit_does_not_hide_a_malformed_record(case, micro_config):
    """A record that became malformed is rejected despite a valid entry."""
    cache = PreparedCache()
    prepare(case, micro_config, cache)
    case.clinical.write_text("{")
    with pytest.raises(InputRejectedError, match="not JSON"):
        prepare(case, micro_config, cache)


def test_file_changed_while_reading_is_not_stored(case, micro_config, cache_folder, monkeypatch):
    """Nothing is stored if a file changes between hashing and reading."""
    original = prepare_module.read_ct

    def read_and_change(case, **options):
        volume = original(case, **options)
        _touch_ct(case, micro_config)
        return volume

    monkeypatch.setattr(prepare_module, "read_ct", read_and_change)
    prepare(case, micro_config, PreparedCache())
    assert entries(cache_folder) == []


def test_extracted_radiomics_are_cached_separately(case, micro_config, monkeypatch):
    """Extracted features are cached; a case with a table has another entry."""
    calls = []

    def extract(case, ct, mask):
        calls.append(case.case_id)
        values_F = np.linspace(-1.0, 1.0, 1781)
        values_F[3] = np.nan
        return ExtractedFeatures(values_F=values_F)

    monkeypatch.setattr(prepare_module, "_extract_radiomics", extract)
    cache, with_table = PreparedCache(), prepare(case, micro_config)
    prepare(case, micro_config, cache)
    table = case.radiomics.read_bytes()
    case.radiomics.unlink()
    first, second = (prepare(case, micro_config, cache) for _ in range(2))
    assert (calls, cache.hits, cache.stored) == (["P001"], 1, 2)
    assert same(first, second)
    assert np.isnan(second.radiomics_F[3])
    assert second.warnings[-1].code == "radiomics-extracted"
    case.radiomics.write_bytes(table)
    assert same(prepare(case, micro_config, cache), with_table)
    assert (calls, cache.hits, cache.stored) == (["P001"], 2, 2)


def _prepare_in_process(folder: str, config: Config) -> tuple[bytes, int, int]:
    cache = PreparedCache()
    prepared = prepare(open_case(Path(folder)), config, cache)
    return prepared.ct_1DHW.tobytes(), cache.hits, cache.stored


def test_concurrent_processes_share_one_entry(case, micro_config, cache_folder):
    """Concurrent processes get the same arrays and leave one complete entry."""
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        results = pool.starmap(_prepare_in_process, [(str(case.folder), micro_config)] * 6, chunksize=1)
    assert {r[0] for r in results} == {prepare(case, micro_config).ct_1DHW.tobytes()}
    assert all(hits + stored == 1 for _, hits, stored in results)
    assert [e.suffix for e in entries(cache_folder)] == [".entry"]


def test_entry_contains_no_patient_data(case, micro_config, cache_folder):
    """Name and content of an entry contain no text or id of the case."""
    record = json.loads(case.clinical.read_text()) | {"patient_id": "Nakamura-4711", "report": "Known to drink."}
    case.clinical.write_text(json.dumps(record))
    prepare(case, micro_config, PreparedCache())
    (entry,) = entries(cache_folder)
    for text in ("Nakamura", "4711", "drink", "P001", "Albumin", str(case.folder)):
        assert text not in entry.name
        assert text.encode() not in entry.read_bytes()


def test_folder_size_is_limited(tmp_path, micro_config, cache_folder):
    """The folder does not exceed `max_bytes`."""
    size = 4 * 12 * 24 * 24
    cache = PreparedCache(max_bytes=int(2.5 * size))
    for seed in range(4):
        prepare(open_case(write_case(tmp_path / f"B{seed}", seed=seed)), micro_config, cache)
    assert cache.stored == 4
    assert sum(e.stat().st_size for e in entries(cache_folder)) <= 2.5 * size


def test_nothing_is_stored_on_a_nearly_full_disk(case, micro_config, cache_folder, monkeypatch):
    """An entry that would leave too little free space is not stored."""
    usage = shutil.disk_usage(case.folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    cache = PreparedCache()
    prepare(case, micro_config, cache)
    assert (cache.stored, entries(cache_folder)) == (0, [])
    assert "1 not stored: the folder cannot be written, or the disk is nearly full" in cache.summary()


def test_disabled_cache_prepares_every_time(case, micro_config, monkeypatch):
    """`TMI_CACHE=off` disables the cache; results are the same."""
    monkeypatch.setenv("TMI_CACHE", "off")
    cache = PreparedCache()
    assert same(prepare(case, micro_config, cache), prepare(case, micro_config, cache))
    assert (cache.hits, cache.stored, cache.folder) == (0, 0, None)
    assert cache.summary() == "cache of prepared cases: off"


@pytest.mark.parametrize(
    "edited", ["prepare.py", "imaging/volume.py", "radiomics/filters/log.py", "data/settings.json"]
)
def test_edit_of_nested_module_changes_code_digest(tmp_path, edited):
    """An edit of any module or data file, at any depth, changes the digest; compiled files are ignored."""
    for name in ("prepare.py", "imaging/volume.py", "radiomics/filters/log.py", "data/settings.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("first")
    parts = ("prepare.py", "imaging", "radiomics", "data")
    before = tree_digest(tmp_path, parts)
    (tmp_path / "imaging" / "__pycache__").mkdir()
    (tmp_path / "imaging" / "__pycache__" / "volume.pyc").write_bytes(b"\0")
    assert tree_digest(tmp_path, parts) == before
    (tmp_path / edited).write_text("second")
    assert tree_digest(tmp_path, parts) != before


def test_moved_module_changes_code_digest(tmp_path):
    """The same text at another path gives another digest."""
    (tmp_path / "room" / "nested").mkdir(parents=True)
    (tmp_path / "room" / "a.py").write_text("x = 1")
    before = tree_digest(tmp_path, ["room"])
    (tmp_path / "room" / "a.py").rename(tmp_path / "room" / "nested" / "a.py")
    assert tree_digest(tmp_path, ["room"]) != before


def test_unlisted_part_does_not_change_code_digest(tmp_path):
    """Only the listed parts enter the digest; a listed part that does not exist is an error."""
    for name in ("used/a.py", "unused/b.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("first")
    before = tree_digest(tmp_path, ["used"])
    (tmp_path / "unused" / "b.py").write_text("second")
    assert tree_digest(tmp_path, ["used"]) == before
    with pytest.raises(FileNotFoundError):
        tree_digest(tmp_path, ["used", "absent.py"])


TOOLKIT = ROOT / "toolkit" / "tmi" / "toolkit"
PACKAGE = "tmi.toolkit"


def module_path(name: str) -> Path | None:
    """Source file of a module of the toolkit; None if `name` is not a module."""
    path = TOOLKIT.joinpath(*name.split(".")[2:])
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def imported_names(path: Path) -> set[str]:
    """Names that a module imports, at any level of its code, and module names in its string literals."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name not in NAMES_NETWORKS:
            names.add(node.value.partition(":")[0])
    return {n for n in names if n.startswith(f"{PACKAGE}.") and all(part.isidentifier() for part in n.split("."))}


NAMES_NETWORKS = ("model_registry.py",)
"""Modules whose string literals name networks: preprocessing reads the rows, and builds no network."""


def import_closure(start: str) -> set[str]:
    """Modules of the toolkit that `start` imports, directly or indirectly, with their parent packages."""
    closure: set[str] = set()
    pending = [start]
    while pending:
        name = pending.pop()
        path = module_path(name) if name not in closure and name.startswith(f"{PACKAGE}.") else None
        if path is not None:
            closure.add(name)
            pending += [name.rpartition(".")[0], *imported_names(path)]
    return closure


def test_code_digest_covers_the_import_closure():
    """`CODE_PARTS` lists the parts of the toolkit that the pipeline imports, at any level of its code, and no other."""
    closure = import_closure("tmi.toolkit.preprocessing.pipeline")
    assert {"tmi.toolkit.radiomics.extractor", "tmi.toolkit.qc.image_checks"} <= closure, "function-level imports count"
    parts = {name.split(".")[2] for name in closure}
    used = {part if (TOOLKIT / part).is_dir() else f"{part}.py" for part in parts}
    assert used == set(CODE_PARTS), f"missing: {used - set(CODE_PARTS)}, unused: {set(CODE_PARTS) - used}"
    assert len(CODE_PARTS) == len(set(CODE_PARTS))


@pytest.mark.parametrize(
    "statement",
    [
        "import tmi.toolkit.models.factory\n",
        "def f():\n    from tmi.toolkit.models import factory\n",
        "import importlib\nimportlib.import_module('tmi.toolkit.models.factory')\n",
    ],
)
def test_import_closure_finds_every_import(tmp_path, monkeypatch, statement):
    """Module-level, function-level and string imports are followed."""
    for name, text in (("preprocessing/pipeline.py", statement), ("models/factory.py", ""), ("models/__init__.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(f"{__name__}.TOOLKIT", tmp_path)
    assert "tmi.toolkit.models.factory" in import_closure("tmi.toolkit.preprocessing.pipeline")
