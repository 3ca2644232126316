"""`tmi predict --server`: a service gives the table, document and exit codes of local prediction."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from factories.cases import write_case
from factories.service import running_service
from factories.tmi_command import tmi
from tmi.runtime import Predictor

TOKEN = "0123456789abcdef0123456789abcdef"
NO_TIMES = ("seconds", "overlapped")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two good cases and one whose CT is no image."""
    folder = tmp_path_factory.mktemp("cases")
    for number in range(2):
        write_case(folder / f"P{number}", seed=number)
    shutil.copytree(folder / "P0", folder / "P2")
    (folder / "P2" / "ct.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def predictor(nano_bundle):
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def url(predictor):
    with running_service(predictor, token=TOKEN.encode()) as client:
        yield f"http://127.0.0.1:{client.port}"


@pytest.fixture
def token(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    return tmp_path / "token"


def without_times(document):
    results = [{k: v for k, v in result.items() if k not in NO_TIMES} for result in document["results"]]
    # The folder, time and version of a document are those of the machine that predicted; the engine was chosen there.
    left_out = ("created", "version", "batch", "results", "engine")
    return {**{k: v for k, v in document.items() if k not in left_out}, "results": results}


@contextmanager
def responding(status, body):
    """Address of a server that gives one response to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_document_equals_local_prediction(nano_bundle, cohort, url, token, tmp_path):
    """Probabilities, alerts, counts and the rejected case are those of local prediction, to the last bit; a rejected
    case is exit code 3, and the file holds the same document.
    """
    local = tmp_path / "local.json"
    words = ("--engine", "onnx", "--threads", 1)
    assert tmi("predict", cohort, "--bundle", nano_bundle, *words, "-o", local).code == 3
    remote = tmi(
        "predict", cohort, "--server", url, "--token-file", token, "--batch", 3, "--json", "-o", tmp_path / "r"
    )
    assert remote.code == 3, remote.err
    document = json.loads(remote.out)
    assert json.loads((tmp_path / "r").read_text()) == document
    assert without_times(document) == without_times(json.loads(local.read_text()))


def test_table_equals_local_prediction(nano_bundle, cohort, url, token):
    """The table and its notes are those of local prediction but for the seconds."""
    local = tmi("predict", cohort / "P0", "--bundle", nano_bundle, "--engine", "onnx", "--threads", 1)
    remote = tmi("predict", cohort / "P0", "--server", url, "--token-file", token)
    assert (local.code, remote.code) == (0, 0), remote.err
    words = [[word for word in text.split() if not word.replace(".", "").isdigit()] for text in (local.out, remote.out)]
    assert words[0] == words[1]
    assert "P0" in remote.out


def test_mask_label_reaches_the_service(cohort, url, token):
    """A label that the mask lacks rejects the case as it does locally."""
    result = tmi("predict", cohort / "P0", "--server", url, "--token-file", token, "--mask-label", 9)
    assert (result.code, "mask-empty" in result.out + result.err) == (3, True)


def test_missing_token_and_unreachable_service(cohort, url):
    """No token is wrong usage; no listener is unavailable (exit code 5). Each names its fix."""
    result = tmi("predict", cohort / "P0", "--server", url)
    assert (result.code, "--token-file" in result.err) == (2, True)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        result = tmi("predict", cohort / "P0", "--server", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert (result.code, "gives no response" in result.err) == (5, True)


@pytest.mark.parametrize(
    ("status", "body", "code", "text"),
    [
        (200, b"<html>", 2, "none of `tmi serve`"),
        (502, b"<html>", 5, "none of `tmi serve`"),
        (200, b'{"schema": "tmi-prediction/9", "results": []}', 2, "use the same version"),
        (200, b'{"schema": "tmi-prediction/3", "results": []}', 2, "none of `tmi serve`"),
        (413, b'{"error": "e", "code": "too-large", "fix": "f"}', 2, "413 too-large"),
        (504, b'{"error": "e", "code": "deadline", "fix": "f"}', 5, "504 deadline"),
    ],
)
def test_other_responses_are_typed_errors(cohort, status, body, code, text):
    """A page of a proxy, another version, and every error of a service have an exit code and a fix."""
    with responding(status, body) as stub:
        result = tmi("predict", cohort / "P0", "--server", stub)
    assert (result.code, text in " ".join(result.err.split())) == (code, True), result.err


def test_response_of_another_case_is_rejected(nano_bundle, cohort):
    """A valid document of another patient, as a proxy that mixes responses gives it, is no result of this case."""
    local = tmi("predict", cohort / "P0", "--bundle", nano_bundle, "--engine", "onnx", "--threads", 1, "--json")
    with responding(200, local.out.encode()) as stub:
        right = tmi("predict", cohort / "P0", "--server", stub, "--json")
        wrong = tmi("predict", cohort / "P1", "--server", stub, "--json")
    assert right.code == 0, right.err
    assert (wrong.code, wrong.out) == (5, "")
    assert "the response is one for another case" in wrong.err


def test_nothing_is_written_if_no_case_reached_the_service(url, token, tmp_path):
    """Without a prediction no bundle is known, so no document is written; the command says so."""
    write_case(tmp_path / "C")
    (tmp_path / "C" / "ct.nii.gz").unlink()
    (tmp_path / "C" / "ct.nii.gz").mkdir()
    out = tmp_path / "r.json"
    outcome = tmi("predict", tmp_path / "C", "--server", url, "--token-file", token, "-o", out)
    assert outcome.code == 3, outcome.err
    assert f"the service has predicted no case; {out} is not written" in outcome.err
    assert not out.exists()


def test_untrusted_certificate_is_wrong_usage(cohort, tmp_path):
    """A certificate of an unknown authority gets no file; the fix names --tls-ca."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    received.append(secure.recv(10))
            except OSError:
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        result = tmi("predict", cohort / "P0", "--server", f"https://localhost:{server.getsockname()[1]}")
        thread.join()
    assert (result.code, "--tls-ca" in result.err) == (2, True), result.err
    assert received in ([], [b""])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--server", "ftp://host"), "no URL of a host"),
        (("--server", "http://h", "--engine", "onnx"), "--engine has no effect with --server"),
        (("--server", "http://h", "-o", "x.jsonl"), "not written as .jsonl"),
        (("--tls-ca", "x"), "no effect without --server"),
    ],
    ids=str,
)
def test_wrong_usage_sends_nothing(cohort, words, text):
    """Options that do not fit end with exit code 2."""
    result = tmi("predict", cohort / "P0", *words)
    assert (result.code, text in " ".join(result.err.split())) == (2, True), result.err
