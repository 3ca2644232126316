"""What does the service add to a prediction, and do its memory and descriptors stay flat under load?

    python benchmarks/service.py BUNDLE CASE --requests 20000

Starts `tmi serve` on a free port of this machine. Latency is a client's median seconds minus the seconds inside the
predictor, at 1, 4 and 16 clients; throughput is compared with `Predictor.predict` on the same cases in the same run.
The soak sends requests of which each tenth is bad, and reads memory and descriptors from `/metrics`. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import queue
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from statistics import median
from time import perf_counter

from tmi.runtime import Predictor
from tmi.toolkit.cases import CaseBytes

FILES = ("ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json")
BOUNDARY = "tmi-benchmark"
CLIENTS = (1, 4, 16)
SOAK_CLIENTS = 8


def form(files: dict[str, bytes]) -> bytes:
    """Body of `POST /cases`."""
    head = '--{}\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    parts = [head.format(BOUNDARY, name).encode() + data + b"\r\n" for name, data in files.items()]
    return b"".join((*parts, f"--{BOUNDARY}--\r\n".encode()))


def send_all(port: int, bodies: list[bytes], clients: int) -> list[tuple[int, float, float]]:
    """Status, seconds and seconds inside the predictor of each request; a lost one has status 0."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for body in bodies:
        waiting.put(body)
    done: list[tuple[int, float, float]] = []

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                return connection.close()
            start = perf_counter()
            try:
                kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
                connection.request("POST", "/cases", body=body, headers=kind)
                response = connection.getresponse()
                status, document = response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                done.append((0, perf_counter() - start, 0.0))
                continue
            (result,) = document.get("results") or ({},)
            done.append((status, perf_counter() - start, result.get("seconds", {}).get("total", 0.0)))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def usage(port: int) -> tuple[float, int]:
    """MiB of memory and number of open descriptors of the service."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = dict(re.findall(r"^(process_resident_memory_bytes|process_open_fds) (\S+)$", text, re.M))
    return round(float(values["process_resident_memory_bytes"]) / 2**20, 1), int(float(values["process_open_fds"]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("case", type=Path)
    parser.add_argument("--requests", type=int, default=20_000, help="requests of the soak")
    parser.add_argument("--latency-requests", type=int, default=96, help="requests at each number of clients")
    parser.add_argument("--engine", default="onnx")
    given = parser.parse_args()
    files = {name: (given.case / name).read_bytes() for name in FILES}
    good, bad = form(files), form({**files, "ct.nii.gz": b"no image"})
    command = [Path(sys.executable).with_name("tmi"), "serve", given.bundle, "--port", 0, "--engine", given.engine]
    words = [str(word) for word in (*command, "--queue", 32, "--log-json")]
    count = given.latency_requests
    found: dict[str, object] = {"processor": platform.processor() or platform.machine(), "requests": given.requests}
    with (
        Predictor.open(given.bundle, engine=given.engine) as predictor,
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as service,
    ):
        assert service.stderr is not None
        started = next(record for line in service.stderr if (record := json.loads(line)).get("event") == "serving")
        drain = threading.Thread(target=lambda: [None for _ in service.stderr or ()])
        drain.start()
        port = int(started["address"].rpartition(":")[2])
        try:
            send_all(port, [good] * 8, 4)  # warm-up
            cases = [CaseBytes(case_id=f"c{number}", files=files) for number in range(count)]
            predictor.predict(cases[:4], batch=4)
            for clients in CLIENTS:
                start = perf_counter()
                predictor.predict(cases, batch=4)
                alone = count / (perf_counter() - start)
                start = perf_counter()
                done = send_all(port, [good] * count, clients)
                served = count / (perf_counter() - start)
                assert {status for status, _, _ in done} == {200}
                around = median(seconds - inside for _, seconds, inside in done)
                found[f"clients_{clients}"] = {
                    "around_predictor_ms": round(1000 * around, 2),
                    "served_per_s": round(served, 2),
                    "predict_batch_4_per_s": round(alone, 2),
                }
                print(clients, "clients", found[f"clients_{clients}"], flush=True)
            statuses: Counter[int] = Counter()
            curve = [usage(port)]
            step = max(20, given.requests // 20)
            for _ in range(0, given.requests, step):
                bodies = [bad if number % 10 == 9 else good for number in range(step)]
                statuses.update(status for status, _, _ in send_all(port, bodies, SOAK_CLIENTS))
                curve.append(usage(port))
                print("soak", dict(statuses), "MiB, descriptors", curve[-1], flush=True)
        finally:
            service.terminate()
            drain.join()
        found |= {"statuses": dict(statuses), "exit_code": service.wait(60)}
        found |= {"mib": [mib for mib, _ in curve], "descriptors": [number for _, number in curve]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
