"""Mutated requests, of the protocol and of their content, have documented statuses only, and never 500."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from factories.service import INFER, Client, binary_request, files_of, form, json_request
from factories.service_checks import mutated_bytes
from tmi.runtime.service.protocol import BINARY_HEADER
from tmi.runtime.service.request_errors import REJECTED, STATUS_OF

ALLOWED = {200, REJECTED, *STATUS_OF.values()} - {STATUS_OF["failed"], STATUS_OF["deadline"], STATUS_OF["queue-full"]}
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, "", "x", "BYTES", "FP64", "INT32", [], [0], [1, 1], [[["a"]]],
    [-1], [2**20, 2**20], {}, {"a": 1}, {"binary_data_size": 5}, {"shared_memory_region": "r"}, "\ud83d", "1" * 50,
    {"binary_data": 1}, {"mask_label": "0"}, {"mask_label": [1]}, {"classification": 3},
)  # fmt: skip
LENGTHS = ("", "-1", "x", "0", "7", "9" * 30, "1e3", "٣")


def mutated_json(rng: random.Random, document: Any) -> Any:
    """A value, key or entry somewhere in a document replaced, removed or repeated."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    changed = json.loads(json.dumps(document))
    walk(changed)
    holder, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 1:
        holder[rng.choice(("datatype", "shape", "data", "parameters", "name", "outputs", "id"))] = rng.choice(VALUES)
    else:
        holder[key] = rng.choice(VALUES)
    return changed


def fuzz(client: Client, inputs: dict[str, bytes], *, seed: int, requests: int) -> Counter[int]:
    """Send mutants; return the number of responses by status."""
    rng = random.Random(seed)
    body, size = binary_request(inputs, outputs=[{"name": "decision"}], parameters={"binary_data_output": True})
    head = json.loads(body[:size])
    plain = json.loads(json_request({**inputs, "case_id": b"P1"}, id="1"))
    data, kind = form({**inputs, "case_id": b"P1"})
    statuses: Counter[int] = Counter()
    for number in range(requests):
        path, headers = INFER, {}
        way = number % 6
        if way == 0:  # the head of a binary request, with its right length
            text = json.dumps(mutated_json(rng, head)).encode()
            sent, headers = text + body[size:], {BINARY_HEADER: str(len(text))}
        elif way == 1:  # anything in a binary request
            sent, headers = mutated_bytes(rng, body), {BINARY_HEADER: str(size)}
        elif way == 2:  # its length
            sent, headers = body, {BINARY_HEADER: rng.choice((*LENGTHS, str(size + rng.randrange(-9, 9))))}
        elif way == 3:
            sent = json.dumps(mutated_json(rng, plain)).encode()
        elif way == 4:
            path, sent, headers = "/cases", mutated_bytes(rng, data), {"Content-Type": kind}
        else:  # the content of one file, in a request that is well formed
            name = rng.choice(list(inputs))
            text, length = binary_request({**inputs, name: mutated_bytes(rng, inputs[name])})
            sent, headers = text, {BINARY_HEADER: str(length)}
        encoded = {name: value.encode("utf-8").decode("latin-1") for name, value in headers.items()}
        response = client(path, sent, method="POST", **encoded)
        statuses[response.status] += 1
        assert response.status in ALLOWED, (seed, number, response.status, response.body[:300])
        if response.status != 200 and path == INFER:
            assert {"error", "code", "fix", "issues"} <= set(response.json)
    return statuses


def test_mutated_requests_have_documented_statuses(client, good_cases):
    """300 mutants: each status is documented and none is 500; some are predicted, rejected and bad requests."""
    statuses = fuzz(client, files_of(good_cases[0]), seed=1, requests=300)
    assert min(statuses[200], statuses[REJECTED], statuses[400]) > 5, statuses
    assert client.service._admitted == 0
    assert client.infer(files_of(good_cases[0])).status == 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_5000_mutated_requests_have_documented_statuses(client, good_cases):
    """5,000 mutants have documented statuses, and the service holds no place and no case afterwards."""
    for seed in range(2, 12):
        fuzz(client, files_of(good_cases[seed % 4]), seed=seed, requests=500)
    assert (client.service._admitted, client.service._queue.waiting) == (0, 0)
