"""Result log: a killed prediction of a cohort resumes without losing or repeating a case."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime.serving.result_log import READ_BYTES, ResultLog, case_state, result_log_path
from tmi.runtime.serving.results import CaseResult, RejectedCase, result_from_json, result_to_json
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage import file_lock
from tmi.toolkit.storage.hashing import sha256_json

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
PROGRAM = """
import os, sys, time
from tmi.runtime.cli import progress
from tmi.toolkit.cli.main import main

original = progress.print_result
def slowly(result, number, count):
    original(result, number, count)
    if number == 3:
        time.sleep(60)
progress.print_result = slowly
main()
"""


@pytest.fixture
def cohort(good_cases, tmp_path) -> Path:
    """Five cases; the second one is rejected."""
    folder = tmp_path / "cohort"
    for number, case in enumerate((good_cases[0], good_cases[1], *good_cases[1:])):
        shutil.copytree(case, folder / f"C{number}")
    (folder / "C1" / "clinical.json").write_text("{")
    return folder


@pytest.fixture
def words(cohort, tiny_bundle):
    return ("predict", cohort, "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1)


def timeless(document: dict) -> dict:
    results = [{k: v for k, v in r.items() if k not in ("seconds", "overlapped")} for r in document["results"]]
    engine = {**document["engine"], "verified": None}  # `now` in the first run, `before` in the second
    return {**document, "created": None, "engine": engine, "results": results}


def killed(words, out: Path) -> None:
    """Start the prediction, and kill it when three cases are done."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", PROGRAM, *map(str, words), "-o", str(out)]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 100
        path = result_log_path(out)
        while not path.exists() or path.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_resumed_run_equals_an_uninterrupted_one(words, cohort, tmp_path):
    """A killed and resumed run writes the same document as an uninterrupted one."""
    complete, out = tmp_path / "whole.json", tmp_path / "answers.json"
    assert tmi(*words, "-o", complete).code == 3
    killed(words, out)
    assert not out.exists()
    blocked = tmi(*words, "-o", out)
    assert (blocked.code, "continue with --resume" in blocked.err) == (2, True)
    lines = result_log_path(out).read_bytes().count(b"\n")
    result_log_path(out).write_bytes(result_log_path(out).read_bytes() + b'{"status": "predic')  # a line cut by a kill
    outcome = tmi(*words, "-o", out, "--resume")
    assert outcome.code == 3
    assert f"{lines - 1} of 5 cases are already predicted" in outcome.err
    assert f"{6 - lines} predicted, 0 rejected in " in outcome.err
    one, two = (timeless(json.loads(path.read_text())) for path in (complete, out))
    assert one == two
    assert [r["status"] for r in two["results"]].count("refused") == 1
    assert not result_log_path(out).exists()


def test_jsonl_output_is_the_log_itself(words, tmp_path):
    """A `.jsonl` output holds a header and one line for each case, and can be resumed."""
    out = tmp_path / "answers.jsonl"
    outcome = tmi(*words, "-o", out, "--json")
    head, *rows = map(json.loads, out.read_text().splitlines())
    assert head["schema"] == "tmi-prediction-lines/3"
    assert [{k: v for k, v in row.items() if k not in ("files", "chain")} for row in rows] == outcome.document[
        "results"
    ]
    again = tmi(*words, "-o", out, "--resume", "--json")
    assert timeless(again.document) == timeless(outcome.document)
    assert "5 of 5 cases are already predicted" in again.err
    assert len(out.read_text().splitlines()) == 6


def _another_engine(words, cohort, out):
    head, *rows = out.read_text().splitlines()
    out.write_text("\n".join([json.dumps({**json.loads(head), "engine": "openvino"}), *rows, ""]))


def _another_bundle(words, cohort, out):
    head, *rows = out.read_text().splitlines()
    out.write_text("\n".join([json.dumps({**json.loads(head), "bundle": "0" * 64}), *rows, ""]))


def _changed_case(words, cohort, out):
    os.utime(cohort / "C2" / "clinical.json", ns=(1, 1))


def _case_gone(words, cohort, out):
    shutil.rmtree(cohort / "C4")


def _damaged_line(words, cohort, out):
    lines = out.read_text().splitlines()
    out.write_text("\n".join([*lines[:2], lines[2][:-9], *lines[3:], ""]))


def _line_twice(words, cohort, out):
    lines = out.read_text().splitlines()
    out.write_text("\n".join([*lines, lines[2], ""]))


@pytest.mark.parametrize(
    ("change", "more", "code", "message"),
    [
        (_another_engine, (), 2, "has another engine (openvino, not onnx)"),
        (_another_bundle, (), 2, "has another bundle"),
        (lambda *_: None, ("--batch", 2), 2, "has another batch (1, not 2)"),
        (lambda *_: None, ("--mask-label", 1), 2, "has another mask_label (None, not 1)"),
        (_changed_case, (), 2, "the files of case C2 have changed since its prediction"),
        (_case_gone, (), 2, "holds case C4, which was not requested"),
        (_damaged_line, (), 6, "line 3 is damaged"),
        (_line_twice, (), 6, "line 7 is damaged"),
    ],
)
def test_mismatching_log_is_not_resumed(words, cohort, finished, tmp_path, change, more, code, message):
    """A log of another bundle, engine, option or case, or a damaged one, is not resumed."""
    out = tmp_path / "answers.jsonl"
    out.write_text(finished)
    change(words, cohort, out)
    outcome = tmi(*words, *more, "-o", out, "--resume")
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err


@pytest.fixture
def finished(words, tmp_path) -> str:
    out = tmp_path / "finished.jsonl"
    tmi(*words, "-o", out)
    return out.read_text()


def test_resume_requires_a_file_and_excludes_force(words, tmp_path):
    """`--resume` needs `-o FILE` and contradicts `--force`."""
    assert "name it with -o FILE" in tmi(*words, "--resume").err
    outcome = tmi(*words, "--resume", "--force", "-o", tmp_path / "x.json")
    assert (outcome.code, "--force starts again and --resume continues" in outcome.err) == (2, True)


def test_unreadable_case_is_rejected_alone(words, cohort, monkeypatch):
    """A case without read permission is rejected; the others are predicted and checked."""
    original_access, original_exists = os.access, Path.exists

    def access(path, mode, **options):
        return "C2" not in str(path) and original_access(path, mode, **options)

    def exists(self):
        if self.parent.name == "C2":
            raise PermissionError(13, "Permission denied", str(self))
        return original_exists(self)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(Path, "exists", exists)
    outcome = tmi("predict", cohort / "C2", cohort / "C0", *words[2:], "--json")
    assert outcome.code == 3
    assert [r["status"] for r in outcome.document["results"]] == ["refused", "predicted"]
    assert "error: case C2: its files cannot be read (Permission denied) [case-unreadable]" in outcome.err
    checked = tmi("check", cohort / "C2", cohort / "C0")
    assert checked.code == 3, checked.err + checked.out
    assert "2 case(s)" in checked.out


needs_locks = pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="the system has no file locks")


def _cases(cohort: Path) -> list[Case]:
    return [Case(folder=path, case_id=path.name) for path in sorted(cohort.iterdir())]


@needs_locks
@pytest.mark.parametrize("more", ["--resume", "--force"])
def test_locked_log_is_not_touched(words, cohort, tmp_path, more):
    """A log that another process has open is neither resumed nor replaced."""
    out = tmp_path / "answers.json"
    with ResultLog.begin(result_log_path(out), {"bundle": "b"}, _cases(cohort)):
        before = result_log_path(out).read_bytes()
        outcome = tmi(*words, "-o", out, more)
        assert (outcome.code, result_log_path(out).read_bytes()) == (2, before)
        assert f"{result_log_path(out)} is being written by another tmi predict" in outcome.err
        assert "fix: wait until it ends, or name another output file" in outcome.err
    assert tmi(*words, "-o", out, "--force").code == 3, "the lock was released"


@needs_locks
def test_killed_process_releases_its_lock(tmp_path):
    """The lock ends with the process, even after SIGKILL."""
    path = tmp_path / "answers.jsonl"
    program = (
        "import sys, time; from pathlib import Path; from tmi.runtime.serving.result_log import ResultLog\n"
        f"j = ResultLog.begin(Path({str(path)!r}), {{}}, []); print('open', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match="is being written by another tmi predict"):
            ResultLog.resume(path, {}, [])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    ResultLog.resume(path, {}, []).close()


@needs_locks
def test_log_removed_before_locking_is_recreated(tmp_path, monkeypatch):
    """If the owner removes the file between open and lock, a new file is opened and locked."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"of another\n")
    original, operations = file_lock.fcntl.flock, []

    def flock(stream, operation):
        if not operations:
            path.unlink()
        operations.append(operation)
        original(stream, operation)

    monkeypatch.setattr(file_lock.fcntl, "flock", flock)
    ResultLog.resume(path, {}, []).close()
    assert len(operations) == 2
    assert set(json.loads(path.read_text())) == {"schema", "chain"}


@pytest.mark.parametrize("error", [None, OSError(errno.ENOLCK, "No locks available")])
def test_log_is_written_without_lock_support(tmp_path, monkeypatch, error):
    """Without file locks the log is written unlocked."""

    def flock(stream, operation):
        raise error

    monkeypatch.setattr(file_lock, "fcntl", error and SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    ResultLog.begin(tmp_path / "answers.jsonl", {}, []).close()
    assert set(json.loads((tmp_path / "answers.jsonl").read_text())) == {"schema", "chain"}


@pytest.mark.parametrize("file", ["ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json", "case.json"])
def test_change_of_equal_size_and_time_is_detected(cohort, file):
    """A changed byte changes the digest even if size and modification time are restored."""
    (case,) = [c for c in _cases(cohort) if c.case_id == "C2"]
    path = cohort / "C2" / file
    if file == "case.json":
        path.write_text('{"schema": "tmi-case/1"}')
    before = case_state(case)
    status, data = path.stat(), bytearray(path.read_bytes())
    assert case_state(case) == before
    data[-5] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert case_state(case) != before


@pytest.mark.parametrize("place", [0, READ_BYTES - 1, -READ_BYTES, -1])
def test_digest_covers_both_ends_of_a_file(tmp_path, place):
    """The digest covers the first and the last bytes of a large file."""
    case, data = Case(folder=tmp_path, case_id="C"), bytearray(3 * READ_BYTES)
    states = []
    for changed in (0, 1):
        data[place] = changed
        case.ct.write_bytes(data)
        os.utime(case.ct, ns=(1, 1))
        states.append(case_state(case))
    assert states[0] != states[1]


def test_begin_replaces_an_existing_log(tmp_path):
    """A new log keeps nothing of the file it replaces."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"schema": "tmi-prediction-lines/1", "bundle": "of another"}\n' * 9)
    ResultLog.begin(path, {}, []).close()
    (line,) = path.read_text().splitlines()
    assert set(json.loads(line)) == {"schema", "chain"}


@pytest.mark.parametrize("kind", ["warning", "rejection"])
def test_log_of_version_1_is_resumed(tmp_path, kind):
    """Warnings without severity and fix, and rejections without issues, are read; later results are of version 2."""
    path, cases = tmp_path / "answers.jsonl", [Case(folder=tmp_path / f"C{n}", case_id=f"C{n}") for n in range(2)]
    recorded = json.loads((PUBLISHED / "predictions.json").read_text())["results"][0] | {"case_id": "C0"}
    old = [{"code": "input", "message": "ct.nii.gz is tilted", "count": None, "names": []}]
    result = recorded | {"warnings": old}
    if kind == "rejection":
        result = {"status": "refused", "case_id": "C0", "code": "ct-nan", "what": "a voxel", "fix": "export again"}
    lines, chain = [], ""
    for fields in ({"schema": "tmi-prediction-lines/1", "bundle": "b"}, {**result, "files": case_state(cases[0])}):
        chain = sha256_json([chain, fields])
        lines.append(json.dumps({**fields, "chain": chain}))
    path.write_text("\n".join([*lines, ""]))
    later = RejectedCase(case_id="C1", code="ct-nan", what="a voxel", fix="export again")
    with ResultLog.resume(path, {"bundle": "b"}, cases) as log:
        log.append(later)
    with ResultLog.resume(path, {"bundle": "b"}, cases) as log:
        first, second = log.results.values()
    (issue,) = first.issues if isinstance(first, RejectedCase) else first.warnings
    expected = ("ct-nan", "error") if kind == "rejection" else ("input", "warning")
    assert (issue.code, issue.severity, issue.case_id) == (*expected, "C0")
    assert issue.fix
    assert second == later
    assert set(result_to_json(first)["issues" if kind == "rejection" else "warnings"][0]) == set(vars(issue))


def _edited(position: int, **changes):
    def edit(lines):
        lines[position] = json.dumps({**json.loads(lines[position]), **changes})

    return edit


def _without_chain(lines):
    for position, line in enumerate(lines):
        lines[position] = json.dumps({k: v for k, v in json.loads(line).items() if k != "chain"})


EDITS = {
    "another probability": (_edited(2, spread=0.5), 3),
    "another reason": (_edited(1, what="nothing"), 2),
    "a further key": (_edited(3, note="x"), 4),
    "a line removed": (lambda lines: lines.pop(2), 3),
    "lines exchanged": (lambda lines: lines.insert(1, lines.pop(2)), 2),
    "a line's chain": (_edited(1, chain="0" * 64), 2),
    "the header's chain": (_edited(0, chain=None), 1),
    "a log without chains": (_without_chain, 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_log_is_not_resumed(tmp_path, edit):
    """An edited, removed or exchanged line ends with an error that names it; the intact log is resumed."""
    path, cases = tmp_path / "answers.jsonl", [Case(folder=tmp_path / f"C{n}", case_id=f"C{n}") for n in range(3)]
    recorded = json.loads((PUBLISHED / "predictions.json").read_text())["results"][0]
    results: list[CaseResult] = [
        RejectedCase(case_id="C0", code="ct-nan", what="a voxel \u00b5", fix="export again"),
        *(result_from_json({**recorded, "case_id": f"C{n}"}) for n in (1, 2)),
    ]
    with ResultLog.begin(path, {"bundle": "b"}, cases) as log:
        for result in results[:2]:
            log.append(result)
    with ResultLog.resume(path, {"bundle": "b"}, cases) as log:  # the chain continues after a kill
        log.append(results[2])
    with ResultLog.resume(path, {"bundle": "b"}, cases) as log:
        assert list(log.results.values()) == results
    lines = path.read_text().splitlines()
    change, number = EDITS[edit]
    change(lines)
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(DamagedError, match=rf"line {number} is damaged or was edited"):
        ResultLog.resume(path, {"bundle": "b"}, cases)


@pytest.mark.timeout(30)
def test_pipe_in_place_of_a_log_is_not_read(tmp_path):
    """A pipe would be waited for; it is named instead."""
    path = tmp_path / "p.jsonl"
    os.mkfifo(path)
    for start in (ResultLog.begin, ResultLog.resume):
        with pytest.raises(UsageError, match="it is a pipe, not a regular file"):
            start(path, {"bundle": "b"}, [])
