"""Swap of the bundle while the service runs: no request is lost, and a bundle that fails a check never predicts."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from factories.grpc_client import call
from factories.planted_faults import reseal
from factories.service import Client, files_of, form, running_service
from factories.service_checks import facts, predictions_of, wait_until
from tmi.runtime import Predictor
from tmi.runtime.service.grpc_messages import message_type
from tmi.runtime.service.served_model import open_replacement
from tmi.toolkit.errors import DamagedError

LOAD, INDEX = "/v2/repository/models/tmi/load", "/v2/repository/index"


@pytest.fixture(scope="module")
def other_bundle(nano_bundle, tmp_path_factory) -> Path:
    """A copy that was exported at another time, and therefore has another digest."""
    folder = tmp_path_factory.mktemp("other") / "bundle"
    shutil.copytree(nano_bundle, folder)
    reseal(folder, created="2026-02-03T04:05:06+00:00")
    return folder


@pytest.fixture
def place(nano_bundle, tmp_path) -> Path:
    """A link to the served bundle, as operators place one."""
    (tmp_path / "current").symlink_to(nano_bundle)
    return tmp_path / "current"


def put(place: Path, bundle: Path) -> None:
    """Exchange the bundle at a place in one step."""
    new = place.with_name("new")
    new.symlink_to(bundle)
    new.replace(place)


@contextmanager
def service_of(place: Path, **options) -> Iterator[Client]:
    """A service of the bundle at a place, which is opened again with every check."""
    open_predictor = partial(Predictor.open, threads=1)
    again = partial(open_replacement, place, None, lambda bundle, engine: open_predictor(bundle, engine=engine))
    with (
        Predictor.open(place, engine="onnx", threads=1) as predictor,
        running_service(predictor, open_again=again, **options) as client,
    ):
        yield client


def load(client: Client):
    return client(LOAD, b"{}")


def test_swap_under_load_loses_no_request(nano_bundle, other_bundle, place, good_cases):
    """Every request has a prediction of one of the two bundles, of the new one alone after the swap."""
    expected = {}
    for folder in (nano_bundle, other_bundle):
        with Predictor.open(folder, engine="onnx", threads=1) as predictor:
            expected[predictor.bundle.digest] = predictions_of(predictor, good_cases[:1])
    first, second = expected
    body, kind = form({**files_of(good_cases[0]), "case_id": good_cases[0].name.encode()})
    documents: list[dict] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            response = client("/cases", body, Content_Type=kind)
            documents.append({"status": response.status, **response.json})

    with service_of(place) as client:
        clients = [threading.Thread(target=send) for _ in range(4)]
        for thread in clients:
            thread.start()
        wait_until(lambda: len(documents) > 4)
        put(place, other_bundle)
        response = load(client)
        count = len(documents)
        wait_until(lambda: len(documents) > count + 8)
        stop.set()
        for thread in clients:
            thread.join(30)
        assert (response.status, response.json["swapped"], response.json["bundle"]) == (200, True, second)
        assert client("/v2/models/tmi").json["parameters"]["bundle"] == second
        assert client.metric('tmi_bundle_loads_total{outcome="swapped"}') == 1
        text = client("/metrics").body.decode()
        assert (first in text, second in text) == (False, True)
    assert {document["status"] for document in documents} == {200}
    assert {document["bundle"]["digest"] for document in documents[:4]} == {first}
    assert {document["bundle"]["digest"] for document in documents[-4:]} == {second}
    for document in documents:
        (entry,) = document["results"]
        (wanted,) = expected[document["bundle"]["digest"]].values()
        assert {k: v for k, v in entry.items() if k not in ("seconds", "overlapped")} == facts(wanted)


def test_damaged_bundle_is_not_swapped(other_bundle, place, tmp_path, good_cases):
    """A damaged bundle is rejected with the reason; the old one predicts, stays ready, and is named by the index."""
    damaged = tmp_path / "damaged"
    shutil.copytree(other_bundle, damaged)
    graph = next(path for path in sorted(damaged.rglob("*.onnx")))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with service_of(place) as client:
        before = client("/v2/models/tmi").json
        put(place, damaged)
        response = load(client)
        assert (response.status, response.json["code"]) == (409, "bundle-rejected")
        assert graph.name in response.json["error"]
        assert str(tmp_path) not in response.body.decode(), "no path of the server"
        assert client("/v2/health/ready").status == 200
        assert client("/v2/models/tmi").json == before
        assert client.infer(files_of(good_cases[0])).status == 200
        (entry,) = client(INDEX, b"").json
        assert (entry["name"], entry["state"]) == ("tmi", "READY")
        assert graph.name in entry["reason"]
        assert client.metric('tmi_bundle_loads_total{outcome="rejected"}') == 1
        (record,) = [r for r in client.log if r["event"] == "load"]
        assert (record["level"], record["outcome"]) == ("error", "rejected")
        put(place, other_bundle)
        assert load(client).json["swapped"] is True
        assert client(INDEX, b'{"ready": true}').json[0]["reason"] == ""


def test_bundle_that_fails_its_self_test_is_not_swapped(other_bundle, place, tmp_path, monkeypatch):
    """The golden case is predicted before the swap: graphs that compute something else never predict a patient."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    wrong = tmp_path / "wrong"
    shutil.copytree(other_bundle, wrong)
    first, second = sorted(wrong.rglob("*ct*.onnx"))[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    reseal(wrong)
    with service_of(place) as client:
        before = client("/v2/models/tmi").json
        put(place, wrong)
        response = load(client)
        assert (response.status, response.json["code"]) == (409, "bundle-rejected")
        assert client("/v2/health/ready").status == 200
        assert str(place.parent) not in response.body.decode(), "no path of the server"
        assert client("/v2/models/tmi").json == before


def test_running_bundle_needs_no_file(place, nano_bundle, tmp_path, good_cases):
    """The running bundle is in memory: the folder may be replaced or removed, and is compared again by a load."""
    copy = tmp_path / "copy"
    shutil.copytree(nano_bundle, copy)
    put(place, copy)
    with service_of(place) as client:
        assert load(client).json["swapped"] is False, "unchanged"
        shutil.rmtree(copy)
        assert client.infer(files_of(good_cases[0])).status == 200
        assert load(client).json["code"] == "bundle-rejected"
        assert client.infer(files_of(good_cases[1])).status == 200


def test_request_names_no_path(place):
    """A load has no parameters, no other model is loaded, and a body is small."""
    with service_of(place) as client:
        body = json.dumps({"parameters": {"config": "{}", "file:model": "L2V0Yw=="}}).encode()
        assert client(LOAD, body).json["code"] == "bad-request"
        assert client("/v2/repository/models/%2Ftmp/load", b"").status == 404
        assert client("/v2/repository/models/tmi/unload", b"").status == 404
        assert client(LOAD, b" " * 2**17).status == 413
        assert client(LOAD, b"[]").status == 400


def test_one_load_at_a_time(nano_predictor):
    """A second load meanwhile is 409; an error of a load leaves the next one possible."""
    started, may_end = threading.Event(), threading.Event()

    def open_again(running):
        started.set()
        assert may_end.wait(30)
        raise DamagedError("bundle: it is damaged", fix="copy it again")

    with running_service(nano_predictor, open_again=open_again) as client:
        codes: list[str] = []
        first = threading.Thread(target=lambda: codes.append(load(client).json["code"]))
        first.start()
        assert started.wait(20)
        assert load(client).json["code"] == "load-running"
        may_end.set()
        first.join(30)
        assert codes == ["bundle-rejected"]
        assert load(client).json["code"] == "bundle-rejected"


def test_replaced_model_is_closed_in_the_worker(nano_predictor):
    """Memory is that of two bundles for a moment: the old one is closed with the swap, once nothing uses it."""
    from tmi.runtime.service.served_model import ServedModel

    closed: list[str] = []

    def open_again(running):
        return ServedModel(
            bundle=nano_predictor.bundle,
            engine=nano_predictor.engine_record,
            predict=running.predict,
            close=lambda: closed.append(threading.current_thread().name),
        )

    with running_service(nano_predictor, open_again=open_again) as client:
        assert load(client).json["swapped"] is True
        assert closed == []
        assert load(client).json["swapped"] is True
        assert closed == ["predict"]
    assert len(closed) == 2, "the last one is closed with the service"


def test_load_and_index_over_grpc(other_bundle, place, tmp_path):
    """GRPC has the same methods, and the statuses of docs/serve.md."""

    def load_message(name: str = "tmi", **parameters: str) -> bytes:
        values = {k: message_type("ModelRepositoryParameter")(string_param=v) for k, v in parameters.items()}
        return message_type("RepositoryModelLoadRequest")(model_name=name, parameters=values).SerializeToString()

    with service_of(place, over_grpc=True) as client:
        put(place, other_bundle)
        reply = call(client.grpc_port, "RepositoryModelLoad", load_message(), kind="RepositoryModelLoadResponse")
        assert reply.status == "OK"
        assert client("/v2/models/tmi").json["parameters"]["bundle"] == client.service.bundle.digest
        put(place, tmp_path / "absent")
        rejected = call(client.grpc_port, "RepositoryModelLoad", load_message())
        assert (rejected.status, rejected.code) == ("FAILED_PRECONDITION", "bundle-rejected")
        (entry,) = call(client.grpc_port, "RepositoryIndex", b"", kind="RepositoryIndexResponse").message.models
        assert (entry.name, entry.version, entry.state) == ("tmi", "1", "READY")
        assert entry.reason
        assert call(client.grpc_port, "RepositoryModelLoad", load_message("other")).code == "not-found"
        assert call(client.grpc_port, "RepositoryModelLoad", load_message(path="/etc")).code == "bad-request"
