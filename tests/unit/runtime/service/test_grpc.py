"""The service over gRPC: the predictor's bits, the limits and access of HTTP, and documented statuses."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import grpc
import numpy as np
import pytest

from factories.grpc_client import call, infer, infer_message
from factories.paths import ROOT
from factories.service import Client, files_of, running_service
from factories.service_checks import Gate, mutated_bytes, predictions_of, require_equal, wait_until
from tmi.runtime import Prediction
from tmi.runtime.service.grpc_endpoint import REJECTED, SERVICE, STATUS_OF, GrpcEndpoint
from tmi.runtime.service.request_errors import STATUS_OF as HTTP_STATUS_OF
from tmi.runtime.service.server import bind
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.table import read_table

TOKEN = "0123456789abcdef0123456789abcdef"
ALLOWED = {"OK", REJECTED.name, *(status.name for status in STATUS_OF.values())} - {"INTERNAL", "UNAVAILABLE"}


@pytest.fixture(scope="module")
def served(nano_predictor) -> Any:
    with running_service(nano_predictor, over_grpc=True) as client:
        yield client


@pytest.fixture(scope="module")
def expected(nano_predictor, good_cases) -> dict[str, Prediction]:
    return predictions_of(nano_predictor, good_cases)


@pytest.fixture(scope="module")
def inputs(good_cases) -> dict[str, bytes]:
    return {**files_of(good_cases[0]), "case_id": good_cases[0].name.encode()}


def test_health_and_metadata_equal_those_of_http(served):
    """Health, name, version and metadata are those of HTTP; another model is not found."""
    port = served.grpc_port
    assert call(port, "ServerLive").message.live
    assert call(port, "ServerReady").message.ready
    server = call(port, "ServerMetadata").message
    assert {"name": server.name, "version": server.version, "extensions": [*server.extensions]} == served("/v2").json
    metadata, known = call(port, "ModelMetadata", infer_message({})).message, served("/v2/models/tmi").json
    for side in ("inputs", "outputs"):
        found = [{"name": t.name, "datatype": t.datatype, "shape": [*t.shape]} for t in getattr(metadata, side)]
        assert found == known[side]
    assert call(port, "ModelReady", infer_message({})).message.ready
    for request in (b"\n\x05other", b"\n\x03tmi\x12\x012"):
        reply = call(port, "ModelReady", request)
        assert (reply.status, reply.code) == ("NOT_FOUND", "not-found")


def test_inference_equals_the_predictor(served, good_cases, expected):
    """Raw data and typed contents, and 1,781 numbers, give the bits of the predictor; id and outputs are followed."""
    for number, folder in enumerate(good_cases):
        given = {**files_of(folder), "case_id": folder.name.encode()}
        if number % 2:
            given["radiomics"] = read_table(folder / "radiomics.csv", case_id="")
        reply = infer(served.grpc_port, given, id=f"r{number}", in_contents=number >= 2)
        assert (reply.status, reply.message.id, reply.message.model_name) == ("OK", f"r{number}", "tmi")
        require_equal(reply.tensors, expected[folder.name])
    message = infer_message(given)
    message.outputs.add(name="decision")
    assert call(served.grpc_port, "ModelInfer", message).tensors == {"decision": [expected[folder.name].decision]}


def test_faulty_requests_have_documented_statuses(served, inputs):
    """A bad request, an unknown output or model, and a rejected case have status, code, fix and issues."""
    port = served.grpc_port

    def error(message: Any) -> tuple[str, str | None]:
        reply = call(port, "ModelInfer", message)
        assert "; fix: " in reply.details
        return reply.status, reply.code

    bad = ("INVALID_ARGUMENT", "bad-request")
    assert error(b"\xff\xff") == bad
    assert error(infer_message({**inputs, "unknown": b""})) == bad
    assert error(infer_message({**inputs, "ct": np.zeros(3)})) == bad
    for change in ("short", "both", "shape", "datatype", "output", "twice", "region"):
        message = infer_message(inputs)
        if change == "short":
            message.raw_input_contents.pop()
        elif change == "both":
            message.inputs[0].contents.bytes_contents.append(b"x")
        elif change == "shape":
            message.inputs[0].shape.append(-1)
        elif change == "datatype":
            message.inputs[0].datatype = "INT32"
        elif change == "output":
            message.outputs.add(name="unknown")
        elif change == "twice":
            message.inputs[0].name = message.inputs[1].name
        else:
            message.inputs[0].parameters["shared_memory_region"].string_param = "r"
        assert error(message) == bad, change
    assert error(infer_message(inputs, model_version="2")) == ("NOT_FOUND", "not-found")
    reply = infer(port, {**inputs, "ct": b"no image"})
    assert (reply.status, reply.code) == (REJECTED.name, reply.issues[0]["code"])
    labelled = infer_message(inputs)
    labelled.parameters["mask_label"].int64_param = 9
    assert call(port, "ModelInfer", labelled).code == "mask-empty"
    assert call(port, "ModelConfig", kind="ModelReadyResponse").status == "UNIMPLEMENTED"
    assert served.service._admitted == 0


def test_statuses_are_documented():
    """docs/serve.md has the status of each code beside that of HTTP; every code is one of HTTP's."""
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| \d{3} \| `([a-z-]+)` \| ([A-Z_]+) \|", text, re.M))
    assert documented == {code: s.name for code, s in STATUS_OF.items() if code != "client-gone"}
    assert f"| code of the check | {REJECTED.name} |" in text
    assert set(STATUS_OF) <= set(HTTP_STATUS_OF)


def test_request_is_logged_without_its_content(served, inputs):
    """A request has one record with its id, method, status and bytes, and its metric; the id is returned."""
    reply = infer(served.grpc_port, {**inputs, "case_id": b"Mrs Secret"}, metadata={"x-request-id": "request-7"})
    assert reply.trailing["x-request-id"] == "request-7"
    (record,) = [record for record in served.log if record["request_id"] == "request-7"]
    facts = {"method": "gRPC", "route": f"{SERVICE}/ModelInfer", "status": "OK", "code": "ok"}
    assert facts.items() <= record.items()
    assert record["bytes"] > 10_000
    assert "Secret" not in str(served.log)
    assert served.metric(f'tmi_requests_total{{code="ok",route="{SERVICE}/ModelInfer",status="OK"}}') >= 1


def test_token_is_required(nano_predictor, inputs):
    """Without the token every method but the health is UNAUTHENTICATED, and nothing is read."""
    with running_service(nano_predictor, over_grpc=True, token=TOKEN.encode()) as client:
        for metadata in ({}, {"authorization": "Bearer wrong"}):
            for method in ("ServerMetadata", "ModelMetadata", "ModelReady"):
                assert call(client.grpc_port, method, metadata=metadata).code == "unauthorized"
            assert infer(client.grpc_port, inputs, metadata=metadata).status == "UNAUTHENTICATED"
        assert all("bytes" not in record for record in client.log)
        assert call(client.grpc_port, "ServerReady").message.ready
        assert infer(client.grpc_port, inputs, metadata={"authorization": f"Bearer {TOKEN}"}).status == "OK"


def test_limits_of_size_and_encoding(nano_predictor, inputs):
    """A message above the limit, and a compressed one, are rejected; the service keeps no place for them."""
    with running_service(nano_predictor, over_grpc=True, max_request_bytes=200_000) as client:
        assert infer(client.grpc_port, {**inputs, "ct": bytes(250_000)}).status == "RESOURCE_EXHAUSTED"
        squeezed = infer_message({**inputs, "ct": bytes(10_000_000)})
        reply = call(client.grpc_port, "ModelInfer", squeezed, compression=grpc.Compression.Gzip)
        assert reply.status == "UNIMPLEMENTED"
        wait_until(lambda: client.service._admitted == 0)


def test_full_queue_deadline_and_cancellation(nano_predictor, inputs):
    """Beyond the queue a request is UNAVAILABLE with `retry-after`; a deadline of the client or of the service ends
    the wait, and a cancelled case is not predicted.
    """
    gate = Gate(nano_predictor)
    settings = {"queue": 1, "max_batch": 1, "timeout_s": 20.0}
    with (
        running_service(nano_predictor, predict=gate, over_grpc=True, **settings) as client,
        ThreadPoolExecutor(2) as pool,
        closing(grpc.insecure_channel(f"127.0.0.1:{client.grpc_port}")) as channel,
    ):
        first = pool.submit(infer, client.grpc_port, {**inputs, "case_id": b"first"})
        wait_until(lambda: gate.reached == ["first"])
        message = infer_message({**inputs, "case_id": b"cancelled"}).SerializeToString()
        waiting = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(message)
        wait_until(lambda: client.service._queue.waiting == 1)
        full = infer(client.grpc_port, inputs)
        assert (full.status, full.code) == ("UNAVAILABLE", "queue-full")
        assert int(full.trailing["retry-after"]) >= 1
        waiting.cancel()
        wait_until(lambda: client.service._queue.waiting == 0 and client.service._admitted == 1)
        late = call(client.grpc_port, "ModelInfer", infer_message({**inputs, "case_id": b"late"}), timeout=0.5)
        assert late.status == "DEADLINE_EXCEEDED"
        wait_until(lambda: client.service._admitted == 1)
        gate.may_run.set()
        assert first.result().status == "OK"
        assert gate.reached == ["first"]


def test_client_that_sends_nothing_is_given_up(nano_predictor):
    """A call without its message, and one whose client waits for ever, end in time and hold no place."""
    with running_service(nano_predictor, over_grpc=True, idle_s=0.3) as client:
        with closing(grpc.insecure_channel(f"127.0.0.1:{client.grpc_port}")) as channel:
            ask = channel.stream_unary(f"/{SERVICE}/ModelInfer")
            with pytest.raises(grpc.RpcError) as empty:
                ask(iter(()), timeout=20)
            assert empty.value.code().name == "INVALID_ARGUMENT"
            release = threading.Event()
            silent = (b"" for _ in range(1) if release.wait(20))
            with pytest.raises(grpc.RpcError) as late:
                ask(silent, timeout=20)
            assert dict(late.value.trailing_metadata())["tmi-code"] == "body-timeout"
            release.set()
        assert client.service._admitted == 0


def test_engine_that_raises_is_internal(nano_predictor, inputs):
    """The prediction's failure is INTERNAL without its text; the log has type and place."""

    def predict(cases):
        raise RuntimeError("secret of the patient")
        yield

    with running_service(nano_predictor, predict=predict, over_grpc=True) as client:
        reply = infer(client.grpc_port, inputs)
        assert (reply.status, reply.code) == ("INTERNAL", "failed")
        (record,) = [record for record in client.log if record["level"] == "error"]
        assert record["failure"] == "RuntimeError"
        assert "secret" not in f"{client.log}{reply}"


def test_accepted_calls_are_answered_when_the_service_ends(nano_predictor, inputs):
    """A call that was accepted before the end has its response; the port is closed afterwards."""
    gate = Gate(nano_predictor)
    with ThreadPoolExecutor(1) as pool:
        with running_service(nano_predictor, predict=gate, over_grpc=True) as client:
            accepted = pool.submit(infer, client.grpc_port, inputs)
            wait_until(lambda: gate.reached)
            client.listener.drain()
            time.sleep(0.3)
            gate.may_run.set()
        assert accepted.result().status == "OK"
    assert infer(client.grpc_port, inputs).status == "UNAVAILABLE"


def test_tls_needs_the_certificate_of_the_client(nano_predictor, inputs, tmp_path):
    """With an authority for clients a client with its certificate is served, and one without is not."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    root, identity = certificate.read_bytes(), (key.read_bytes(), certificate.read_bytes())
    with running_service(nano_predictor, over_grpc=True, grpc_tls=(certificate, key, certificate)) as client:
        port = client.grpc_port
        assert call(port, "ModelInfer", infer_message(inputs), root=root, identity=identity).status == "OK"
        assert call(port, "ServerLive", root=root, timeout=3).status != "OK"
        assert call(port, "ServerLive", timeout=3).status != "OK"


def test_port_in_use_is_not_shared(served):
    """The port of another gRPC server is in use, before the bundle is opened and when the server starts."""
    with pytest.raises(UsageError, match="is in use"):
        bind("127.0.0.1", served.grpc_port)
    bound = bind("127.0.0.1", 0)
    late = GrpcEndpoint(served.service, log=lambda level, fields: None, bound=bound)
    late.address = f"127.0.0.1:{served.grpc_port}"
    with pytest.raises(UsageError, match="cannot be bound for gRPC"):
        asyncio.run(late.start())


def mutated_message(rng: random.Random, inputs: dict[str, Any]) -> bytes:
    """A request whose bytes, fields or files are changed."""
    way = rng.randrange(4)
    if way == 0:
        return mutated_bytes(rng, infer_message(inputs).SerializeToString())
    if way == 1:
        name = rng.choice([name for name in inputs if name != "case_id"])
        return infer_message({**inputs, name: mutated_bytes(rng, inputs[name])}).SerializeToString()
    message = infer_message(inputs, in_contents=way == 2)
    entry = rng.choice(message.inputs)
    kind = rng.randrange(6)
    if kind == 0:
        entry.name = rng.choice(("", "ct", "liver", "x" * 300, "\u202e"))
    elif kind == 1:
        entry.datatype = rng.choice(("", "FP64", "BYTES", "INT32"))
    elif kind == 2:
        entry.shape.append(rng.choice((-1, 0, 1, 2, 2**62)))
    elif kind == 3:
        message.inputs.add(name=rng.choice(("ct", "radiomics", "more")), datatype="FP64", shape=[0])
    elif kind == 4 and message.raw_input_contents:
        at = rng.randrange(len(message.raw_input_contents))
        message.raw_input_contents[at] = mutated_bytes(rng, message.raw_input_contents[at])
    else:
        message.parameters["mask_label"].string_param = rng.choice(("0", "x", "1,2", ""))
    data: bytes = message.SerializeToString()
    return data


def fuzz(client: Client, inputs: dict[str, bytes], *, seed: int, requests: int) -> Counter[str]:
    """Send mutants; return the number of responses by status."""
    rng, statuses = random.Random(seed), Counter[str]()
    with closing(grpc.insecure_channel(f"127.0.0.1:{client.grpc_port}")) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for number in range(requests):
            try:
                ask(mutated_message(rng, inputs), timeout=60)
                status, trailing = "OK", {"tmi-code": "ok"}
            except grpc.RpcError as error:
                status, trailing = error.code().name, dict(error.trailing_metadata())
            assert status in ALLOWED, (seed, number, status)
            assert "tmi-code" in trailing, (seed, number, status)
            statuses[status] += 1
    return statuses


def test_mutated_messages_have_documented_statuses(served, inputs):
    """200 mutants: each status is documented, none is INTERNAL; some are predicted, rejected and bad requests."""
    statuses = fuzz(served, inputs, seed=1, requests=200)
    assert min(statuses["OK"], statuses[REJECTED.name], statuses["INVALID_ARGUMENT"]) > 5, statuses
    assert served.service._admitted == 0
    assert infer(served.grpc_port, inputs).status == "OK"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_5000_mutated_messages_have_documented_statuses(served, inputs):
    """5,000 mutants have documented statuses, and the service holds no place and no case afterwards."""
    for seed in range(2, 12):
        fuzz(served, inputs, seed=seed, requests=500)
    assert (served.service._admitted, served.service._queue.waiting) == (0, 0)
