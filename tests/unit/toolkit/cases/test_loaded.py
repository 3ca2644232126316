"""Loaded case: each file is read once, and every user gets the same bytes."""

from __future__ import annotations

import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from factories.cases import write_case
from factories.opened_files import count_opens
from tmi.toolkit.cases.arrays import CaseArrays
from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, Case, open_case
from tmi.toolkit.cases.loaded import LoadedCase, load_case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.qc.case_checks import check_case
from tmi.toolkit.storage.bounded_files import FileTooLargeError
from tmi.toolkit.storage.hashing import sha256_file

FILES = ("ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_case(tmp_path / "P1", seed=1)


def values(prepared: PreparedCase) -> tuple[object, ...]:
    return prepared.ct_1DHW.tobytes(), prepared.radiomics_F.tobytes(), prepared.text, prepared.warnings


def test_files_are_opened_once(folder, micro_config):
    """Preparing twice, checking, and reading volumes and digests open each file once."""
    loaded = load_case(folder)
    with count_opens(folder) as opened:
        for _ in range(2):
            prepare_case(loaded, micro_config, load_schema())
        check_case(loaded)
        read_mask(loaded, read_ct(loaded))
        digests = {name: loaded.digest(name) for name in FILES}
    assert digests == {name: sha256_file(folder / name) for name in FILES}
    assert opened == dict.fromkeys(FILES, 1)


def test_loaded_case_gives_the_arrays_of_its_folder(folder, micro_config):
    """Arrays, text, warnings and findings equal those of the folder to the last bit, at every use."""
    loaded, schema = load_case(folder), load_schema()
    expected = values(prepare_case(open_case(folder), micro_config, schema))
    assert values(prepare_case(loaded, micro_config, schema)) == expected, "resampled while it is read"
    assert values(prepare_case(loaded, micro_config, schema)) == expected, "resampled from the kept voxels"
    assert check_case(loaded) == check_case(open_case(folder))
    assert loaded.digest(CT_FILE) == sha256_file(folder / CT_FILE)


def test_replaced_files_change_nothing(folder, tmp_path, micro_config):
    """Files that are replaced after their first use do not mix with those that were read."""
    loaded, schema = load_case(folder), load_schema()
    before = values(prepare_case(loaded, micro_config, schema)), check_case(loaded)
    other = write_case(tmp_path / "other", seed=2, shape_xyz=(30, 26, 22))
    for name in FILES:
        shutil.copy(other / name, folder / name)
    assert (values(prepare_case(loaded, micro_config, schema)), check_case(loaded)) == before
    assert values(prepare_case(load_case(folder), micro_config, schema)) != before[0], "the other files differ"


@pytest.mark.parametrize(("name", "code"), [("ct.nii.gz", "ct-unreadable"), ("clinical.json", "clinical-malformed")])
def test_error_is_repeated(folder, micro_config, name, code):
    """A file that was rejected is rejected again, even if a valid one has taken its place."""
    valid = (folder / name).read_bytes()
    (folder / name).write_bytes(b"no case")
    loaded = load_case(folder)
    for _ in range(2):
        with pytest.raises(InputRejectedError) as raised:
            prepare_case(loaded, micro_config, load_schema())
        assert (raised.value.code, raised.value.case_id) == (code, "P1")
        (folder / name).write_bytes(valid)
    assert code in [finding.code for finding in check_case(loaded)]


def test_kept_voxels_are_read_only(folder):
    """No user of a loaded case can change the voxels of the others."""
    ct = read_ct(load_case(folder))
    with pytest.raises(ValueError, match="read-only"):
        ct.array_DHW[0, 0, 0] = 0


def test_missing_mask_stays_missing(folder):
    """Whether a file exists is decided once."""
    (folder / MASK_FILE).unlink()
    loaded = load_case(folder)
    assert not loaded.has_mask
    (folder / MASK_FILE).touch()
    assert not loaded.has_mask


def test_threads_share_one_reading(folder):
    """Threads that ask for a part at the same time get the same object, which one of them reads."""
    loaded = load_case(folder)
    barrier, volumes = threading.Barrier(4, timeout=20), []

    def read() -> None:
        barrier.wait()
        volumes.append(read_ct(loaded))

    threads = [threading.Thread(target=read) for _ in range(4)]
    with count_opens(folder) as opened:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert opened == {CT_FILE: 1}
    assert len({id(volume) for volume in volumes}) == 1


def test_interrupted_reading_is_tried_again(folder):
    """Only errors of the input are repeated; after any other, the next user reads the part."""
    loaded = load_case(folder)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded.once("part", interrupted)
    assert loaded.once("part", lambda: 7) == loaded.once("part", interrupted) == 7


def test_waiting_thread_gets_the_fault_of_the_reading(folder):
    """A thread that waits for a part whose reading fails gets the cause, and no other error."""
    loaded = load_case(folder)
    reading, waiting = threading.Event(), threading.Event()

    def out_of_memory() -> None:
        reading.set()
        waiting.wait(20)
        time.sleep(0.05)
        raise MemoryError

    caught: list[Exception] = []

    def ask(read: Callable[[], None]) -> None:
        try:
            loaded.once("part", read)
        except (MemoryError, CancelledError) as error:
            caught.append(error)

    first = threading.Thread(target=ask, args=(out_of_memory,))
    first.start()
    assert reading.wait(20)
    second = threading.Thread(target=ask, args=(out_of_memory,))
    second.start()
    waiting.set()
    for thread in (first, second):
        thread.join()
    assert [type(error) for error in caught] == [MemoryError, MemoryError]


@pytest.mark.parametrize("rejected", [False, True])
def test_case_is_freed_with_its_last_user(folder, micro_config, rejected):
    """A loaded case is in no reference cycle, also after a rejection: its voxels are freed without a collection."""
    if rejected:
        (folder / MASK_FILE).write_bytes(b"no mask")
    loaded = load_case(folder)
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            with contextlib.suppress(InputRejectedError):
                prepare_case(loaded, micro_config, load_schema())
        check_case(loaded)
        alive = weakref.ref(loaded)
        del loaded
        assert alive() is None
    finally:
        gc.enable()


def test_limit_of_a_size_holds_for_every_user(folder):
    """A file that one user read with a larger limit is too large for the next one as it is without a loaded case."""
    (folder / "clinical.json").write_text(" " * 3000 + "{}")
    loaded = load_case(folder)
    assert loaded.digest("clinical.json") == sha256_file(folder / "clinical.json")
    with pytest.raises(FileTooLargeError):
        loaded.content("clinical.json", max_bytes=1000)


def test_path_and_case_are_accepted(folder):
    """A path, a string and a `Case` are loaded; a loaded case and arrays are returned as they are."""
    by_path, by_text = load_case(folder, mask_label=5), load_case(str(folder))
    assert isinstance(by_path, LoadedCase)
    assert (by_path.case_id, by_path.mask_label, by_text.folder) == ("P1", 5, folder)
    loaded = load_case(Case(folder=folder, case_id="P1", patient_id="p", label=1))
    assert (loaded.patient_id, loaded.label) == ("p", 1)
    assert load_case(loaded) is loaded
    arrays = CaseArrays(case_id="P1", ct_XYZ=np.zeros((2, 2, 2), np.int16), affine_xyz=np.eye(4))
    assert load_case(arrays) is arrays
    with pytest.raises(InputRejectedError, match="does not exist"):
        load_case(folder / "nowhere")
