"""Access, limits, deadlines and clients that go away: each has its documented status, and the service stays usable."""

from __future__ import annotations

import gc
import json
import re
import socket
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from factories.paths import ROOT
from factories.service import INFER, binary_request, files_of, form, json_request, running_service
from factories.service_checks import Gate, wait_until
from tmi.runtime.service.access import read_token
from tmi.runtime.service.protocol import BINARY_HEADER
from tmi.runtime.service.request_errors import REJECTED, STATUS_OF
from tmi.runtime.service.server import LOOPBACK, bind
from tmi.toolkit.errors import UsageError

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def inputs(good_cases) -> dict[str, bytes]:
    return files_of(good_cases[0])


def test_token_is_required(nano_predictor, inputs):
    """Without the token, or with another, every path but the health is 401; nothing is predicted."""
    with running_service(nano_predictor, token=TOKEN.encode()) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            for path in ("/v2", "/v2/models/tmi", "/metrics", "/nothing"):
                response = client(path, **headers)
                assert (response.status, response.json["code"]) == (401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
            assert client(INFER, json_request(inputs), **headers).status == 401
        assert client("/v2/health/ready").status == 200
        assert client("/v2/models/tmi", Authorization=f"Bearer {TOKEN}").status == 200
        assert client(INFER, json_request(inputs), Authorization=f"bearer {TOKEN}").status == 200
        assert TOKEN not in str(client.log)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
    ids=str,
)
def test_web_pages_have_no_access(nano_predictor, headers, status):
    """On this machine without a token, a page of another origin or a name that an attacker chose is 403."""
    with running_service(nano_predictor, hosts=LOOPBACK) as client:
        assert client("/v2/models/tmi", **headers).status == status


@pytest.mark.parametrize("chunked", [False, True])
def test_body_above_the_limit_is_413(nano_predictor, inputs, chunked):
    """A body above the limit is 413 with its length and without; the next request is served."""
    body = json_request(inputs)
    with running_service(nano_predictor, max_request_bytes=len(body)) as client:
        too_long = body + b" "
        pieces = iter([too_long[:1000], too_long[1000:]]) if chunked else too_long
        response = client(INFER, pieces, method="POST")
        assert (response.status, response.json["code"]) == (413, "too-large")
        assert client(INFER, iter([body]) if chunked else body, method="POST").status == 200


def test_full_queue_is_429(nano_predictor, inputs):
    """When the places of the queue are taken, a request is 429 with Retry-After; the others are predicted."""
    gate = Gate(nano_predictor)
    with running_service(nano_predictor, predict=gate, queue=2, max_batch=1) as client:
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(client.infer(inputs).status)) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: client.service._admitted == 3)
        response = client.infer(inputs)
        assert (response.status, response.json["code"]) == (429, "queue-full")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        gate.may_run.set()
        for thread in threads:
            thread.join(30)
        assert statuses == [200, 200, 200]
        assert client.infer(inputs).status == 200


def test_deadline_is_504(nano_predictor, inputs):
    """A case without a result in time is 504, and is not predicted if it still waited."""
    gate = Gate(nano_predictor)
    with running_service(nano_predictor, predict=gate, timeout_s=0.3, max_batch=1) as client:
        first = threading.Thread(target=lambda: client.infer({**inputs, "case_id": b"first"}))
        first.start()
        wait_until(lambda: gate.reached)
        response = client.infer({**inputs, "case_id": b"second"})
        assert (response.status, response.json["code"]) == (504, "deadline")
        first.join(30)
        gate.may_run.set()
        assert client.infer({**inputs, "case_id": b"third"}).status == 200
        assert gate.reached == ["first", "third"]


def test_case_of_a_client_that_went_is_not_predicted(nano_predictor, inputs):
    """A client that closes its connection frees its place, and its waiting case is not predicted."""
    gate = Gate(nano_predictor)
    with running_service(nano_predictor, predict=gate, max_batch=1) as client:
        first = threading.Thread(target=lambda: client.infer({**inputs, "case_id": b"first"}))
        first.start()
        wait_until(lambda: gate.reached)
        body, size = binary_request({**inputs, "case_id": b"second"})
        connection = client.connect()
        connection.request("POST", INFER, body=body, headers={BINARY_HEADER: str(size)})
        wait_until(lambda: client.service._queue.waiting == 1)
        connection.close()
        wait_until(lambda: client.service._admitted == 1)
        gate.may_run.set()
        first.join(30)
        assert client.infer({**inputs, "case_id": b"third"}).status == 200
        assert gate.reached == ["first", "third"]
        wait_until(lambda: len(client.log) == 3)
        assert [record["code"] for record in client.log] == ["client-gone", "ok", "ok"]


def test_half_sent_body_is_given_up(nano_predictor, inputs):
    """A client that stops within its body gets 408 and frees its place; one that goes away frees it at once."""
    with running_service(nano_predictor, idle_s=0.3, queue=0, max_batch=1) as client:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf".encode()
        with socket.create_connection(("127.0.0.1", client.port)) as slow:
            slow.sendall(head)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(("127.0.0.1", client.port)) as gone:
            gone.sendall(head)
            wait_until(lambda: client.service._admitted == 1)
        wait_until(lambda: client.service._admitted == 0)
        assert client.infer(inputs).status == 200


def test_silent_connections_are_closed(nano_predictor, inputs):
    """100 connections that send nothing, or half a header, are closed, and keep nobody from being served."""
    with running_service(nano_predictor, idle_s=0.5) as client:
        silent = [socket.create_connection(("127.0.0.1", client.port), timeout=20) for _ in range(100)]
        for number, connection in enumerate(silent):
            connection.sendall(b"POST /v2/mo" if number % 2 else b"")
        assert client.infer(inputs).status == 200
        assert [connection.recv(1) for connection in silent] == [b""] * 100
        for connection in silent:
            connection.close()


def test_half_a_second_header_is_closed(nano_predictor):
    """The limit holds for every request of a connection, however the bytes of its header arrive."""
    with (
        running_service(nano_predictor, idle_s=1.0) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection,
    ):
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b'{"live":true}' not in received:
            received += connection.recv(1000)
        for piece in (b"GET", b" /v2", b"/he"):
            connection.sendall(piece)
            time.sleep(0.1)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("cut", ["within-a-part", "after-a-part"])
def test_form_that_was_cut_off_is_malformed(client, good_cases, cut):
    """A form without its last boundary is 400: a file would be half, or a part would be missing."""
    body, content_type = form(files_of(good_cases[0]))
    boundary = content_type.rpartition("=")[2].encode()
    end = body.rindex(b"\r\n--" + boundary)
    kept = end - 9 if cut == "within-a-part" else end + 4 + len(boundary)
    response = client("/cases", body[:kept], content_type=content_type)
    assert (response.status, response.json["code"]) == (400, "bad-request")
    assert "last boundary" in response.json["error"]


def test_messages_of_the_form_parser_are_not_logged(client, caplog):
    """The parser's warnings quote bytes of the request."""
    response = client("/cases", b"--x\r\nGARBAGE", content_type="multipart/form-data; boundary=y")
    assert response.status == 400
    assert caplog.records == []


def test_unknown_output_is_rejected_before_the_prediction(nano_predictor, inputs):
    """A wrong name costs no prediction."""
    gate = Gate(nano_predictor)
    gate.may_run.set()
    with running_service(nano_predictor, predict=gate) as client:
        body, size = binary_request(inputs)
        head, rest = json.loads(body[:size]), body[size:]
        text = json.dumps({**head, "outputs": [{"name": "verdict"}]}).encode()
        response = client(INFER, text + rest, **{BINARY_HEADER: str(len(text))})
        assert (response.status, gate.reached) == (400, [])


def test_body_is_freed_before_the_prediction(nano_predictor, inputs):
    """While a case waits for its prediction, its files are in memory once."""
    gate, size = Gate(nano_predictor), 40 * 2**20
    with running_service(nano_predictor, predict=gate) as client:
        body, kind = form({**inputs, "ct": bytes(size)})
        gc.collect()
        tracemalloc.start()
        sender = threading.Thread(target=lambda: client("/cases", body, content_type=kind))
        sender.start()
        wait_until(lambda: gate.reached)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gate.may_run.set()
        sender.join(30)
    assert size < held < 1.5 * size


def test_other_paths_methods_and_encodings(client, inputs):
    """An unknown path is 404, a wrong method 405, a compressed body 415."""
    assert client("/v2/models/other").json["code"] == "not-found"
    assert client("/v2/models/tmi/versions/2/infer", b"{}").status == 404
    response = client(INFER)
    assert (response.status, response.json["code"], response.headers["allow"]) == (405, "method-not-allowed", "POST")
    assert client(INFER, json_request(inputs), Content_Encoding="gzip").status == 415
    assert client("/docs").status == client("/openapi.json").status == 404, "no page that loads from elsewhere"


def test_log_and_metrics_hold_no_patient(client, inputs, good_cases):
    """A request has one record with its id, route, status and code; no record and no metric names the case."""
    time.sleep(0.05)
    client.log.clear()
    secret = {**inputs, "case_id": b"Mrs Secret"}
    assert client.infer(secret).status == 200
    assert client.infer({**secret, "ct": b"Mrs Secret"}).status == 422
    response = client("/Mrs-Secret?name=Mrs-Secret", X_Request_Id="abc-1")
    assert response.headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", client("/v2", X_Request_Id="Mrs Secret").headers["x-request-id"])
    wait_until(lambda: len(client.log) == 4)  # a record follows its response
    assert [(r["route"], r["status"], r["code"]) for r in client.log] == [
        (INFER, 200, "ok"),
        (INFER, 422, "ct-unreadable"),
        ("other", 404, "not-found"),
        ("/v2", 200, "ok"),
    ]
    assert client.log[2]["request_id"] == "abc-1"
    metrics = client("/metrics").body.decode()
    assert "Secret" not in f"{client.log} {metrics}"
    for line in (
        f'tmi_requests_total{{code="ct-unreadable",route="{INFER}",status="422"}}',
        "tmi_queue_cases 0.0",
        "tmi_batch_cases_bucket",
        'tmi_stage_seconds_count{stage="ct"}',
        f'bundle="{client.service.bundle.digest}"',
        "process_resident_memory_bytes",
    ):
        assert line in metrics


def test_nothing_is_left_on_the_disk(nano_predictor, good_cases, tmp_path, monkeypatch):
    """Cases are not written to temporary files or caches, features of a mask included."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    with running_service(nano_predictor) as client:
        assert client.infer(files_of(good_cases[1], "ct", "liver", "clinical")).status == 200
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_statuses_are_documented():
    """docs/serve.md has a row for each code with its status, and no other."""
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    documented = {code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", text, re.M)}
    assert documented == {code: status for code, status in STATUS_OF.items() if code != "client-gone"}
    assert f"| {REJECTED} | code of the check |" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"short", "holds no token"), (b"a" * 20 + b"\nb", "holds no token"), (None, "cannot be read")],
)
def test_unusable_token_file_is_wrong_usage(tmp_path: Path, content, text):
    """A token that is short, of two lines or missing is an error before the service starts."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(UsageError, match=text):
        read_token(tmp_path / "token")


def test_port_in_use_is_wrong_usage():
    """A port that another program listens on, and a host that is not here, are errors before the bundle is opened."""
    with bind("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(UsageError, match="is in use"):
            bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(UsageError, match="cannot be bound"):
        bind("192.0.2.1", 0)


def test_error_document_names_the_fix(client):
    """Errors of the protocol have the keys `error`, `code`, `fix` and `issues`."""
    response = client(INFER, b"{")
    assert set(json.loads(response.body)) == {"error", "code", "fix", "issues"}
    assert response.status == 400
