"""`tmi serve` as a process: it drains under load, ends by a second signal, leaves nothing, and reports wrong usage."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from factories.cases import write_case
from factories.planted_faults import reseal
from factories.service import INFER, binary_request, files_of, form
from factories.tmi_command import tmi
from factories.triton_client import call_server, make_environment
from tmi.runtime.service.protocol import BINARY_HEADER

TMI = Path(sys.executable).with_name("tmi")


class Server:
    """A running process, and the lines of its log."""

    def __init__(self, bundle: Path, *options: object) -> None:
        words = ["serve", bundle, "--port", 0, "--engine", "onnx", "--threads", 1, "--log-json", *options]
        self.process = subprocess.Popen([TMI, *map(str, words)], stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, object]] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._ready.wait(60)
        assert self.process.poll() is None, self.log

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1].get("event") == "serving":
                self._ready.set()
        self._ready.set()

    @property
    def port(self) -> int:
        (address,) = [str(record["address"]) for record in self.log if record.get("event") == "serving"]
        return int(address.rpartition(":")[2])

    @property
    def grpc_port(self) -> int:
        (address,) = [str(record["grpc_address"]) for record in self.log if record.get("event") == "serving"]
        return int(address.rpartition(":")[2])

    @property
    def requests(self) -> list[dict[str, object]]:
        return [record for record in self.log if record.get("event") == "request"]

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def server(bundle: Path, *options: object) -> Iterator[Server]:
    """A process that is killed at the end if it still runs."""
    running = Server(bundle, *options)
    try:
        yield running
    finally:
        running.process.kill()
        running.end()


def send(port: int, body: bytes, size: int) -> tuple[int, bytes]:
    """One request on a connection of its own: its status and its response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", INFER, body=body, headers={BINARY_HEADER: str(size)})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.long
def test_term_under_load_loses_no_accepted_request(nano_bundle, tmp_path):
    """After SIGTERM every request that the log has was answered, the port is closed and the exit code is 0; no record
    names a case.
    """
    inputs = files_of(write_case(tmp_path / "P1", seed=1))
    body, size = binary_request({**inputs, "case_id": b"Mrs Secret"})
    answers: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                answers.append(send(port, body, size)[0])
            except OSError:  # not accepted any more
                return

    with server(nano_bundle) as running:
        port = running.port
        clients = [threading.Thread(target=load) for _ in range(8)]
        for client in clients:
            client.start()
        while len(answers) < 20:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        code = running.end()
        stop.set()
        for client in clients:
            client.join(60)
        assert code == 0
        assert set(answers) == {200}
        assert [record["status"] for record in running.requests] == [200] * len(answers)
        assert [record["event"] for record in running.log[-1:]] == ["ended"]
        assert "Secret" not in str(running.log)
        with pytest.raises(OSError, match="refused"):
            send(port, body, size)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
def test_hangup_loads_the_bundle_again(nano_bundle, tmp_path):
    """SIGHUP swaps the bundle that was put in the folder, and rejects one that is damaged; the service goes on."""
    copy = Path(shutil.copytree(nano_bundle, tmp_path / "copy"))
    reseal(copy, created="2026-02-03T04:05:06+00:00")
    place = tmp_path / "current"

    def put(bundle: Path) -> None:
        (tmp_path / "new").symlink_to(bundle)
        (tmp_path / "new").replace(place)

    def loads(running: Server) -> list[object]:
        return [record["outcome"] for record in running.log if record.get("event") == "load"]

    def hang_up(running: Server, outcomes: list[object]) -> None:
        running.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while loads(running) != outcomes:
            assert time.monotonic() < end, running.log
            time.sleep(0.05)

    put(nano_bundle)
    with server(place) as running:
        put(copy)
        hang_up(running, ["swapped"])
        put(tmp_path / "absent")
        hang_up(running, ["swapped", "rejected"])
        inputs = files_of(write_case(tmp_path / "P1", seed=1))
        body, size = binary_request(inputs)
        assert send(running.port, body, size)[0] == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0


@pytest.mark.long
def test_second_signal_ends_at_once(nano_bundle, tmp_path):
    """While a request is incomplete the first signal waits; the second ends with exit code 130."""
    with server(nano_bundle) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.putrequest("POST", INFER)
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"half")
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.7)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 130
        connection.close()


@pytest.mark.long
def test_tls_needs_the_certificate_of_the_client(nano_bundle, tmp_path):
    """With `--tls-client-ca` a client with a certificate of the authority is served; others get no response."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    body, kind = form(files_of(write_case(tmp_path / "P1", seed=1)))
    options = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", certificate)
    with server(nano_bundle, *options) as running:
        context = ssl.create_default_context(cafile=certificate)
        with pytest.raises((OSError, http.client.HTTPException)):
            _post(running.port, context, body, kind)
        context.load_cert_chain(certificate, key)
        assert _post(running.port, context, body, kind) == 200
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 0


def _post(port: int, context: ssl.SSLContext, body: bytes, kind: str) -> int:
    connection = http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
    try:
        connection.request("POST", "/cases", body=body, headers={"Content-Type": kind})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--token-file", "absent"), "token file absent does not exist"),
        (("--tls-cert", "file"), "a certificate needs its key"),
        (("--tls-client-ca", "file"), "no effect without TLS"),
        (("--tls-cert", "file", "--tls-key", "file"), "cannot be used"),
        (("--token-file", "file"), "holds no token"),
        (("--host", "192.0.2.1"), "cannot be bound"),
    ],
    ids=str,
)
def test_wrong_usage_ends_before_the_bundle_is_opened(options, text, tmp_path, monkeypatch):
    """An option that cannot be used ends with exit code 2, even if there is no usable bundle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no certificate")
    (tmp_path / "bundle").mkdir()
    result = tmi("serve", "bundle", *options)
    assert result.code == 2
    assert text in result.err


def test_unusable_bundle_has_its_exit_code(tmp_path):
    """A folder that is no bundle ends with the exit code of `tmi verify`, and nothing listens."""
    (tmp_path / "bundle").mkdir()
    assert tmi("serve", tmp_path / "bundle", "--port", 0).code == tmi("verify", tmp_path / "bundle").code != 0


def test_open_address_without_token_is_warned_of(tmp_path):
    """Listening for other machines without token and TLS prints a warning with its fix."""
    (tmp_path / "bundle").mkdir()
    text = tmi("serve", tmp_path / "bundle", "--host", "0.0.0.0", "--port", 0).err
    assert re.search(r"0\.0\.0\.0 is reached from other machines, and the service has no token and no TLS", text)
    (tmp_path / "token").write_text("0123456789abcdef")
    text = tmi("serve", tmp_path / "bundle", "--host", "0.0.0.0", "--port", 0, "--token-file", tmp_path / "token").err
    assert "has no TLS" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tritonclient_gets_the_bits_of_the_predictor(nano_bundle, tmp_path):
    """The real client of Triton, in an environment of its own, calls health, metadata and inference over HTTP, in
    binary and in JSON, and over gRPC; probabilities equal the predictor's to the last bit, and a rejected case is its
    exception.
    """
    from tmi.runtime import Prediction, Predictor

    python = make_environment(tmp_path / "venv", "tritonclient[http,grpc]")
    case = write_case(tmp_path / "P1", seed=1)
    with server(nano_bundle, "--grpc-port", 0) as running:
        over_http = call_server(python, "http", running.port, case)
        over_grpc = call_server(python, "grpc", running.grpc_port, case)
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        (result,) = predictor.predict(case)
    assert isinstance(result, Prediction)
    expected = [list(result.probability.values()), [list(fold.probability.values()) for fold in result.folds]]
    for found in (over_http, over_grpc):
        assert found["true"] == expected
        assert (found["server"], found["decision"]) == ("tmi", result.decision)
        assert found["issues"] == [{**issue.to_dict(), "case_id": "case"} for issue in result.warnings]
        assert "cannot be read as NIfTI" in found["error"]
    assert over_http["false"] == expected
    assert (over_http["status"], over_grpc["status"]) == ("422", "StatusCode.FAILED_PRECONDITION")
