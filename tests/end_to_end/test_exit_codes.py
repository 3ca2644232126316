"""Every documented exit code is reached, with a message that names the error and a fix."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from factories.cases import write_case
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.bundle.check_result import CheckResult, ParityError
from tmi.runtime.engines.registry import ENGINES
from tmi.toolkit.errors import ExitCode


@pytest.fixture(scope="module")
def good_case(tmp_path_factory) -> Path:
    return write_case(tmp_path_factory.mktemp("cases") / "P000")


@pytest.fixture
def workspace(tmp_path, monkeypatch, good_case, random_run, tiny_bundle) -> dict[str, Path]:
    """A valid case, a run, a bundle and an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return {"case": good_case, "run": random_run, "bundle": tiny_bundle, "tmp": tmp_path}


Reach = Callable[[Mapping[str, Path], pytest.MonkeyPatch], CommandResult]


def predict(
    workspace: Mapping[str, Path], *more: object, case: Path | None = None, bundle: Path | None = None
) -> CommandResult:
    return tmi("predict", case or workspace["case"], "--bundle", bundle or workspace["bundle"], *more)


def done(workspace, patch) -> CommandResult:
    return predict(workspace, "--engine", "onnx")


def unexpected(workspace, patch) -> CommandResult:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret of a patient")

    patch.setattr("tmi.runtime.serving.predictor.open_trusted_bundle", broken)
    return predict(workspace)


def usage(workspace, patch) -> CommandResult:
    return tmi("predict", workspace["case"])


def rejected(workspace, patch) -> CommandResult:
    (workspace["tmp"] / "empty").mkdir()
    return predict(workspace, workspace["tmp"] / "nowhere", "--engine", "onnx", case=workspace["tmp"] / "empty")


def parity(workspace, patch) -> CommandResult:
    record = CheckResult(
        check="logits", artefact="onnx", graph="pipeline", passed=False, measured=0.5, bound=0.1, detail="logits differ"
    )

    def failing(*_: object, **__: object) -> None:
        raise ParityError("the bundle was not written", fix="look at the table", records=[record])

    patch.setattr("tmi.export.bundle.writer.export_run", failing)
    return tmi("export", workspace["run"], "--engine", "onnx", "--out", workspace["tmp"] / "bundle")


def unavailable(workspace, patch) -> CommandResult:
    from tmi.runtime.engines import registry as engine

    find_spec = engine.importlib.util.find_spec
    patch.setattr(engine.importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    return predict(workspace, "--engine", "openvino")


def damaged(workspace, patch) -> CommandResult:
    copy = Path(shutil.copytree(workspace["bundle"], workspace["tmp"] / "bundle"))
    graph = next((copy / "graphs").glob("*.onnx"))
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    return predict(workspace, bundle=copy)


REACHED: Mapping[ExitCode, tuple[Reach, str]] = MappingProxyType(
    {
        ExitCode.DONE: (done, ""),
        ExitCode.UNEXPECTED: (unexpected, "error: unexpected RuntimeError\n  fix: run the command again with --debug"),
        ExitCode.USAGE: (usage, "error: bundle is not a bundle: manifest.json is missing\n  fix: name a bundle with"),
        ExitCode.REJECTED: (
            rejected,
            "error: case nowhere: the case folder does not exist [case-missing]\n  fix: give the path",
        ),
        ExitCode.PARITY: (parity, "error: the bundle was not written\n  fix: look at the table"),
        ExitCode.UNAVAILABLE: (unavailable, "fix: pip install 'tmi-clnet[openvino]'"),
        ExitCode.DAMAGED: (damaged, ".onnx was changed after the export\n  fix: copy the bundle again"),
    }
)


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: f"{code.value}-{code.name.lower()}")
def test_exit_code_is_reached_with_message_and_fix(code, workspace, monkeypatch):
    """A command ends with the code, prints the error and its fix, and shows no traceback."""
    reach, message = REACHED[code]
    outcome = reach(workspace, monkeypatch)
    assert outcome.code == int(code), outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert "secret" not in outcome.err


def test_invalid_options_are_wrong_usage(workspace):
    """A value out of range, an unknown option and an unknown engine end with the code of wrong usage."""
    assert predict(workspace, "--batch", 0).code == int(ExitCode.USAGE)
    assert predict(workspace, "--colour", "red").code == int(ExitCode.USAGE)
    outcome = predict(workspace, "--engine", "cuda")
    assert outcome.code == int(ExitCode.USAGE)
    assert f"fix: choose auto or one of {', '.join(ENGINES)}" in outcome.err


def test_debug_shows_the_traceback(workspace, monkeypatch):
    """With `--debug`, an unexpected error is printed with its traceback."""
    monkeypatch.setattr("tmi.runtime.serving.predictor.open_trusted_bundle", lambda *_: 1 / 0)
    outcome = predict(workspace, "--debug")
    assert outcome.code == int(ExitCode.UNEXPECTED)
    assert "Traceback" in outcome.err
    assert "ZeroDivisionError" in outcome.err
