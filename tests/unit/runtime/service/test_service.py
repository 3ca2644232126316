"""The service over HTTP: health, metadata, and predictions that equal the predictor's to the last bit."""

from __future__ import annotations

import json
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from factories.service import INFER, binary_request, files_of, form, json_request, running_service
from factories.service_checks import facts, predictions_of, require_equal
from tmi.runtime import Prediction
from tmi.runtime.service.protocol import BINARY_HEADER
from tmi.toolkit.radiomics.table import read_table

EXTENSIONS = ["binary_tensor_data", "model_repository"]


@pytest.fixture(scope="module")
def expected(nano_predictor, good_cases) -> dict[str, Prediction]:
    return predictions_of(nano_predictor, good_cases)


def test_service_is_announced_once_clients_can_connect(nano_predictor):
    """A client that starts when the service says that it runs is not rejected."""
    outcomes = []

    def connect(port: int) -> None:
        with socket.socket() as client:
            outcomes.append(client.connect_ex(("127.0.0.1", port)))

    with running_service(nano_predictor, on_listening=connect):
        pass
    assert outcomes == [0]


def test_health_and_metadata(client, nano_predictor):
    """Health, name, version and metadata follow the protocol, under the model and under its version."""
    assert client("/v2").json == {"name": "tmi", "version": "1.2.3", "extensions": EXTENSIONS}
    assert client("/v2/health/live").json == {"live": True}
    assert client("/v2/health/ready").json["ready"] is True
    for path in ("/v2/models/tmi", "/v2/models/tmi/versions/1"):
        metadata = client(path).json
        assert client(f"{path}/ready").json == {"name": "tmi", "ready": True}
        assert [entry["name"] for entry in metadata["inputs"]] == ["ct", "liver", "radiomics", "clinical", "case_id"]
        assert metadata["inputs"][2] == {"name": "radiomics", "datatype": "FP64", "shape": [1, 1781]}
        assert metadata["outputs"][0] == {"name": "probability", "datatype": "FP64", "shape": [1, 2]}
        assert metadata["parameters"]["bundle"] == nano_predictor.bundle.digest


def test_binary_inference_equals_the_predictor(client, good_cases, expected):
    """Binary inputs, with outputs in JSON, give the bits of the predictor."""
    for folder in good_cases:
        response = client.infer({**files_of(folder), "case_id": folder.name.encode()}, id="request 7")
        assert (response.status, response.json["id"]) == (200, "request 7")
        assert (response.json["model_name"], response.json["model_version"]) == ("tmi", "1")
        require_equal(response.tensors, expected[folder.name])


def test_binary_outputs_hold_the_same_bits(client, good_cases, expected):
    """Outputs as binary data, all of them or the one that asks for it, equal those in JSON."""
    folder, result = good_cases[0], expected[good_cases[0].name]
    given = {**files_of(folder), "case_id": folder.name.encode()}
    every = client.infer(given, parameters={"binary_data_output": True})
    assert every.headers["content-type"] == "application/octet-stream"
    assert np.frombuffer(every.tensors["probability"]).tolist() == list(result.probability.values())
    decision = result.decision.encode()
    assert every.tensors["decision"] == struct.pack("<I", len(decision)) + decision
    wanted = [{"name": "spread", "parameters": {"binary_data": True}}, {"name": "decision"}]
    some = client.infer(given, outputs=wanted)
    assert some.tensors == {"spread": struct.pack("<d", result.spread), "decision": [result.decision]}


def test_json_inference_equals_the_predictor(client, good_cases, expected):
    """A request in JSON alone, with images in base64, gives the same bits."""
    folder = good_cases[1]
    response = client(INFER, json_request({**files_of(folder), "case_id": folder.name.encode()}))
    require_equal(response.tensors, expected[folder.name])


@pytest.mark.parametrize("in_json", [False, True])
def test_features_as_numbers_equal_the_table(client, good_cases, expected, in_json, nano_predictor):
    """1,781 numbers of FP64 give the bits of radiomics.csv; null is a missing value."""
    folder = good_cases[2]
    values = read_table(folder / "radiomics.csv", case_id="")
    given = files_of(folder, "ct", "liver", "clinical")
    if in_json:
        document = json.loads(json_request({**given, "case_id": folder.name.encode()}))
        numbers = {"name": "radiomics", "datatype": "FP64", "shape": [1, 1781], "data": [values.tolist()]}
        document["inputs"].append(numbers)
        response = client(INFER, json.dumps(document).encode())
        numbers["data"][0][0] = None
        missing = client(INFER, json.dumps(document).encode())
        assert "radiomics-imputed" in missing.tensors["issues"][0]
    else:
        response = client.infer({**given, "radiomics": values, "case_id": folder.name.encode()})
    require_equal(response.tensors, expected[folder.name])


def test_features_are_extracted_from_the_mask(client, good_cases):
    """Without radiomics they are extracted, which the response says."""
    response = client.infer(files_of(good_cases[0], "ct", "liver", "clinical"))
    assert response.status == 200
    assert "radiomics-extracted" in response.tensors["issues"][0]


@pytest.mark.parametrize("by_filename", [False, True])
def test_form_gives_the_document_of_the_command(client, good_cases, expected, by_filename):
    """`POST /cases` returns the document of `tmi predict --json` for the files of a form."""
    folder = good_cases[3]
    parts = files_of(folder)
    filenames = None
    if by_filename:
        filenames = {f"file{n}": file for n, file in enumerate(("ct.nii.gz", "liver.nii.gz", "radiomics.csv"))}
        parts = {name: (folder / file).read_bytes() for name, file in filenames.items()}
        parts["clinical.json"] = (folder / "clinical.json").read_bytes()
    body, kind = form({**parts, "case_id": folder.name.encode()}, filenames=filenames)
    response = client("/cases", body, Content_Type=kind)
    assert response.status == 200
    assert response.json["schema"] == "tmi-prediction/3"
    (entry,) = response.json["results"]
    assert {k: v for k, v in entry.items() if k not in ("seconds", "overlapped")} == facts(expected[folder.name])


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"ct": b"no image"}, "ct-unreadable"),
        ({"ct": None}, "ct-missing"),
        ({"clinical": None}, "clinical-missing"),
        ({"clinical": b"{}"}, "clinical-malformed"),
        ({"radiomics": None, "liver": None}, "radiomics-missing"),
        ({"radiomics": np.full(1781, np.inf)}, "radiomics-value"),
        ({"radiomics": np.zeros(5)}, "radiomics-columns"),
    ],
    ids=str,
)
def test_rejected_case_is_422_with_its_issues(client, good_cases, changed, code):
    """A case that a check rejects has status 422, the code and the fix of the check, and its issues."""
    given = {name: value for name, value in (files_of(good_cases[0]) | changed).items() if value is not None}
    response = client.infer(given)
    assert (response.status, response.json["code"]) == (422, code)
    assert response.json["issues"][0]["code"] == code
    assert response.json["fix"] == response.json["issues"][0]["fix"] != ""


def test_rejected_form_is_422_with_the_document(client, good_cases):
    """`POST /cases` of a rejected case has status 422 and the document with its reason."""
    body, kind = form({**files_of(good_cases[0]), "ct": b"no image"})
    response = client("/cases", body, Content_Type=kind)
    (entry,) = response.json["results"]
    assert (response.status, entry["status"], entry["code"]) == (422, "refused", "ct-unreadable")


def test_label_of_the_liver_is_a_parameter(client, good_cases):
    """`mask_label` selects the liver in the mask, in both kinds of request."""
    given = files_of(good_cases[0])
    assert client.infer(given, parameters={"mask_label": 1}).status == 200
    assert client.infer(given, parameters={"mask_label": "9"}).json["code"] == "mask-empty"
    assert client.infer(given, parameters={"mask_label": "liver"}).json["code"] == "bad-request"
    body, kind = form({**given, "mask_label": b"9"})
    assert client("/cases", body, Content_Type=kind).json["results"][0]["code"] == "mask-empty"


def test_cases_of_a_batch_equal_each_alone(nano_predictor, good_cases, expected):
    """Valid cases that are predicted together, also with a bad one and with equal ids, have the bits of each alone."""
    started = threading.Event()

    def predict(cases):
        started.wait(20)  # the first batch begins when the others wait
        return nano_predictor.stream(cases, exact=True)

    with running_service(nano_predictor, predict=predict, max_batch=8) as client, ThreadPoolExecutor(8) as pool:
        given = [{**files_of(folder), "case_id": folder.name.encode()} for folder in good_cases]
        given.insert(2, {**given[0], "ct": b"no image", "case_id": b"bad"})
        given.append(given[0])
        responses = [pool.submit(client.infer, inputs) for inputs in given]
        while client.service._admitted < len(given):
            threading.Event().wait(0.01)
        started.set()
        results = [future.result() for future in responses]
        assert client.metric("tmi_batch_cases_count") < len(given), "they were predicted together"
    assert [r.status for r in results] == [200, 200, 422, 200, 200, 200]
    for response in results:
        if response.status == 200:
            require_equal(response.tensors, expected[response.tensors["case_id"][0]])


def test_engine_that_raises_fails_its_case_alone(nano_predictor, good_cases, expected):
    """A case whose prediction raises has status 500; its neighbours of the batch are predicted, and the log is silent
    about its content.
    """
    started = threading.Event()

    def predict(cases):
        started.wait(20)
        for result in nano_predictor.stream(cases, exact=True):
            if result.case_id == "P001":
                raise RuntimeError("secret of patient P001")
            yield result

    with running_service(nano_predictor, predict=predict, max_batch=8) as client, ThreadPoolExecutor(8) as pool:
        given = [{**files_of(folder), "case_id": folder.name.encode()} for folder in good_cases]
        responses = [pool.submit(client.infer, inputs) for inputs in given]
        while client.service._admitted < len(given):
            threading.Event().wait(0.01)
        started.set()
        results = [future.result() for future in responses]
        while len(client.log) < len(given):
            threading.Event().wait(0.01)
        (record,) = [record for record in client.log if record["level"] == "error"]
        assert record["failure"] == "RuntimeError"
        assert "secret" not in str(client.log)
        assert client("/v2/health/ready").status == 200
    assert [r.status for r in results] == [200, 500, 200, 200]
    assert (results[1].json["code"], "secret" in results[1].body.decode()) == ("failed", False)
    for response in (results[0], *results[2:]):
        require_equal(response.tensors, expected[response.tensors["case_id"][0]])


def test_length_of_the_header_is_checked(client, good_cases):
    """A wrong `Inference-Header-Content-Length` is a bad request."""
    body, size = binary_request(files_of(good_cases[0]))
    for wrong in (str(len(body) + 1), "-1", "x", str(size - 1), "0"):
        assert client(INFER, body, **{BINARY_HEADER: wrong}).json["code"] == "bad-request"
