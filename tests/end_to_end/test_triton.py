"""The model repository of `tmi triton` on the real Triton server, called by the client that calls `tmi serve`."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from factories.cases import write_case
from factories.paths import ROOT
from factories.tmi_command import tmi
from factories.triton_client import call_server, make_environment
from factories.triton_server import RUNTIME_PACKAGES, SERVER_PACKAGES, triton_server

IS_SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info[:2] == (3, 11)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not IS_SUPPORTED, reason="the server's wheel is used with Python 3.11 on Linux x86-64")
def test_repository_predicts_as_the_predictor(nano_bundle, tmp_path):
    """Over HTTP and gRPC the predictions are those of `Predictor` to the last bit, and a bad case has its code."""
    from tmi.runtime import Prediction, Predictor

    python = make_environment(tmp_path / "venv", *SERVER_PACKAGES, *RUNTIME_PACKAGES)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, ROOT], check=True, capture_output=True)
    case = write_case(tmp_path / "P1", seed=1)
    repository = tmp_path / "repository"
    assert tmi("triton", nano_bundle, repository, "--engine", "onnx", "--threads", 1).code == 0
    with triton_server(python, repository, tmp_path / "server") as server:
        found = {
            protocol: call_server(python, protocol, port, case, radiomics="FP64")
            for protocol, port in (("http", server.http_port), ("grpc", server.grpc_port))
        }
        log = server.log.read_text()
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        (result,) = predictor.predict(case)
    assert isinstance(result, Prediction)
    expected = [list(result.probability.values()), [list(fold.probability.values()) for fold in result.folds]]
    for one in found.values():
        assert one["true"] == expected
        assert (one["server"], one["decision"]) == ("triton", result.decision)
        assert "cannot be read as NIfTI" in one["error"]
        assert "[ct-unreadable]" in one["error"]
    assert found["http"]["false"] == expected
    assert "cannot be read" not in log, "nothing of a request is logged"
