"""A prepared case from the cache is the prepared case; a changed byte or setting, or damage, makes it anew."""

from __future__ import annotations

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
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.preprocessing.cache import PreparedCache, tree_digest
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case


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


def test_a_cached_case_is_the_prepared_case_to_the_last_bit_with_its_warnings(case, micro_config, monkeypatch):
    plain, cache = prepare(case, micro_config), PreparedCache()
    first = prepare(case, micro_config, cache)
    assert (cache.hits, cache.stored) == (0, 1)
    monkeypatch.setattr(prepare_module, "read_ct", None)  # nothing is read from the image again
    second = prepare(case, micro_config, cache)
    assert (cache.hits, cache.stored) == (1, 1)
    assert plain.warnings == ("liver.nii.gz covers 493 mL",)
    assert same(plain, first)
    assert same(plain, second)


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
def test_what_changed_is_prepared_anew_even_at_the_same_time_of_change(case, micro_config, change):
    cache, time = PreparedCache(), os.stat(case.ct).st_mtime_ns
    prepare(case, micro_config, cache)
    changed, config = CHANGES[change](case, micro_config)
    for file in (case.ct, case.mask):
        if file.is_file():
            os.utime(file, ns=(time, time))
    answer = prepare(changed, config, cache)
    assert (cache.hits, cache.stored) == (0, 2)
    assert same(answer, prepare(changed, config))


def test_another_version_of_the_code_or_of_numpy_finds_nothing(case, micro_config, monkeypatch):
    cache = PreparedCache()
    prepare(case, micro_config, cache)
    with monkeypatch.context() as patch:
        patch.setattr("tmi.toolkit.preprocessing.cache.code_digest", lambda: "another")
        prepare(case, micro_config, cache)
    with monkeypatch.context() as patch:
        patch.setattr("tmi.toolkit.preprocessing.cache.version", lambda name: "0.0")
        prepare(case, micro_config, cache)
    assert (cache.hits, cache.stored) == (0, 3)


def test_text_and_table_are_read_anew_beside_a_cached_image(case, micro_config):
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
def test_a_damaged_entry_is_noticed_and_made_anew(case, micro_config, cache_folder, tmp_path, damage):
    cache = PreparedCache()
    plain = prepare(case, micro_config, cache)
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
    assert same(prepare(case, micro_config, cache), plain)
    assert (cache.hits, cache.stored) == (0, 1)
    assert same(prepare(case, micro_config, cache), plain)
    assert cache.hits == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refused_case_is_refused_alike_and_leaves_no_entry(case, micro_config, cache_folder, tmp_path, fault):
    (folder,) = (p for p in write_bad_cases(tmp_path / "bad", case.folder) if p.name == fault)
    told = []
    for cache in (None, PreparedCache(), PreparedCache()):
        with pytest.raises(InputRejectedError) as error:
            prepare(open_case(folder), micro_config, cache)
        told.append((error.value.code, str(error.value), error.value.fix))
    assert told[0][0] == FAULTS[fault].code
    assert told[0] == told[1] == told[2]
    assert entries(cache_folder) == []


def test_a_good_entry_does_not_let_a_case_pass_whose_record_was_spoilt_since(case, micro_config):
    cache = PreparedCache()
    prepare(case, micro_config, cache)
    case.clinical.write_text("{")
    with pytest.raises(InputRejectedError, match="not JSON"):
        prepare(case, micro_config, cache)


def test_a_file_that_changes_while_it_is_read_is_not_stored(case, micro_config, cache_folder, monkeypatch):
    original = prepare_module.read_ct

    def changing(asked, **options):
        volume = original(asked, **options)
        _touch_ct(asked, micro_config)
        return volume

    monkeypatch.setattr(prepare_module, "read_ct", changing)
    prepare(case, micro_config, PreparedCache())
    assert entries(cache_folder) == []


def test_extracted_radiomics_are_kept_with_the_images_and_apart_from_a_given_table(case, micro_config, monkeypatch):
    calls = []

    def extract(asked, ct, mask):
        calls.append(asked.case_id)
        values_F = np.linspace(-1.0, 1.0, 1781)
        values_F[3] = np.nan
        return values_F, None

    monkeypatch.setattr(prepare_module, "_extract", extract)
    cache, given = PreparedCache(), prepare(case, micro_config)
    prepare(case, micro_config, cache)
    table = case.radiomics.read_bytes()
    case.radiomics.unlink()
    first, second = (prepare(case, micro_config, cache) for _ in range(2))
    assert (calls, cache.hits, cache.stored) == (["P001"], 1, 2)
    assert same(first, second)
    assert np.isnan(second.radiomics_F[3])
    assert second.warnings[-1] == "radiomics were extracted from the liver mask"
    case.radiomics.write_bytes(table)
    assert same(prepare(case, micro_config, cache), given)
    assert (calls, cache.hits, cache.stored) == (["P001"], 2, 2)


def _prepare_in_process(folder: str, config: Config) -> tuple[bytes, int, int]:
    cache = PreparedCache()
    answer = prepare(open_case(Path(folder)), config, cache)
    return answer.ct_1DHW.tobytes(), cache.hits, cache.stored


def test_processes_at_once_get_the_same_arrays_and_leave_one_whole_entry(case, micro_config, cache_folder):
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        answers = pool.starmap(_prepare_in_process, [(str(case.folder), micro_config)] * 6, chunksize=1)
    assert {a[0] for a in answers} == {prepare(case, micro_config).ct_1DHW.tobytes()}
    assert all(hits + stored == 1 for _, hits, stored in answers)
    assert [e.suffix for e in entries(cache_folder)] == [".entry"]


def test_nothing_of_the_patient_but_voxels_and_figures_is_stored(case, micro_config, cache_folder):
    record = json.loads(case.clinical.read_text()) | {"patient_id": "Nakamura-4711", "report": "Known to drink."}
    case.clinical.write_text(json.dumps(record))
    prepare(case, micro_config, PreparedCache())
    (entry,) = entries(cache_folder)
    for told in ("Nakamura", "4711", "drink", "P001", "Albumin", str(case.folder)):
        assert told not in entry.name
        assert told.encode() not in entry.read_bytes()


def test_the_folder_stays_within_its_bound(tmp_path, micro_config, cache_folder):
    size = 4 * 12 * 24 * 24
    cache = PreparedCache(max_bytes=int(2.5 * size))
    for seed in range(4):
        prepare(open_case(write_case(tmp_path / f"B{seed}", seed=seed)), micro_config, cache)
    assert cache.stored == 4
    assert sum(e.stat().st_size for e in entries(cache_folder)) <= 2.5 * size


def test_a_nearly_full_disk_is_left_alone(case, micro_config, cache_folder, monkeypatch):
    usage = shutil.disk_usage(case.folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    cache = PreparedCache()
    prepare(case, micro_config, cache)
    assert (cache.stored, entries(cache_folder)) == (0, [])
    assert "1 not stored: it cannot be written, or the disk is nearly full" in cache.summary()


def test_a_cache_that_is_turned_off_prepares_each_time(case, micro_config, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", "off")
    cache = PreparedCache()
    assert same(prepare(case, micro_config, cache), prepare(case, micro_config, cache))
    assert (cache.hits, cache.stored, cache.folder) == (0, 0, None)
    assert cache.summary() == "cache of prepared cases: off"


@pytest.mark.parametrize(
    "edited", ["prepare.py", "imaging/volume.py", "radiomics/filters/log.py", "data/settings.json"]
)
def test_edit_of_nested_module_changes_code_digest(tmp_path, edited):
    """Any module or data file, at any depth, is part of the key; what is no source is not."""
    for name in ("prepare.py", "imaging/volume.py", "radiomics/filters/log.py", "data/settings.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("first")
    before = tree_digest(tmp_path)
    (tmp_path / "imaging" / "__pycache__").mkdir()
    (tmp_path / "imaging" / "__pycache__" / "volume.pyc").write_bytes(b"\0")
    assert tree_digest(tmp_path) == before
    (tmp_path / edited).write_text("second")
    assert tree_digest(tmp_path) != before


def test_moved_module_changes_code_digest(tmp_path):
    """The same text at another place is another code."""
    (tmp_path / "a.py").write_text("x = 1")
    before = tree_digest(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "a.py").rename(tmp_path / "b" / "a.py")
    assert tree_digest(tmp_path) != before
