"""`tmi predict --server`: cases are predicted by a service, and the table and documents are those of this command."""

from __future__ import annotations

import datetime
import ipaddress
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from tmi.runtime.service.client import ServiceClient
    from tmi.runtime.serving.results import CaseResult
    from tmi.toolkit.cases.case import Case


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of `tmi predict` about the service."""

    url: str
    """Its address."""
    token_file: Path | None
    """File with its token."""
    tls_ca: Path | None
    """Authority of its certificate."""
    tls_cert: Path | None
    """Certificate of this client."""
    tls_key: Path | None
    """Key of the certificate."""


def require_remote(given: Mapping[str, bool], out: Path | None) -> None:
    """Raise if an option has no effect beside `--server`.

    Args:
        given: option -> whether it is given.
        out: the output file.

    Raises:
        UsageError: one is given.
    """
    options = [name for name, is_given in given.items() if is_given]
    if options:
        raise UsageError(
            f"{options[0]} has no effect with --server: the service has its own bundle and engine",
            fix=f"leave {options[0]} out, or give it to `tmi serve`",
        )
    if out is not None and out.suffix.lower() == ".jsonl":
        raise UsageError("results of a service are not written as .jsonl", fix="name a file that ends in .json or .csv")


def predict_remotely(
    cases: Sequence[Case], options: ServerOptions, *, at_a_time: int, as_json: bool, out: Path | None
) -> list[CaseResult]:
    """Predict cases and print them, or write them to a file.

    Args:
        cases: the cases.
        options: the service.
        at_a_time: number of requests at a time.
        as_json: whether the document is printed instead of the table.
        out: output file; None: none.

    Raises:
        UsageError: the service does not accept the request.
        UnavailableError: the service cannot be reached, gives no result, or exchanged its bundle meanwhile.
    """
    from tmi.runtime.cli.progress import print_result
    from tmi.runtime.cli.tables.predictions import print_table, to_csv
    from tmi.runtime.serving.results import Prediction, alerts, result_to_json
    from tmi.toolkit.storage.atomic_files import write_text
    from tmi.toolkit.storage.hashing import canonical_json

    client, served = _client(options), []
    with ThreadPoolExecutor(at_a_time) as pool:
        waiting = [pool.submit(client.predict, case) for case in cases]
        try:
            for number, future in enumerate(waiting, start=1):
                served.append(future.result())
                print_result(served[-1].result, number, len(cases))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = [one.result for one in served]
    documents = [one.document for one in served if one.document is not None]
    if not documents:  # a document states bundle and engine, and none has predicted a case
        unwritten = "" if out is None else f"; {out} is not written"
        echo(f"the service has predicted no case{unwritten}", err=True, level=logging.WARNING)
        return results
    first = documents[0]
    if any(one.bundle != first.bundle or one.engine != first.engine for one in documents):
        raise UnavailableError("the service exchanged its bundle between the cases", fix="predict them again")
    predicted = sum(isinstance(result, Prediction) for result in results)
    stated: dict[str, Any] = {
        **first.values,
        "alerts": [issue.to_dict() for _, issue in alerts(results)],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": {**first.values["counts"], "predicted": predicted, "refused": len(results) - predicted},
        "results": [result_to_json(result) for result in results],
    }
    text = canonical_json(stated)
    if out is not None:
        as_csv = out.suffix.lower() == ".csv"
        write_text(out, to_csv(results, bundle=first.bundle, engine=first.engine) if as_csv else text)
        echo(f"written {out}", err=True)
    if as_json:
        echo_json(text)
    else:
        print_table(results, bundle=first.bundle, engine=first.engine)
    return results


def _client(options: ServerOptions) -> ServiceClient:
    from tmi.runtime.service.access import read_token
    from tmi.runtime.service.client import ServiceClient, client_tls
    from tmi.toolkit.cli.inputs import require_paths

    files = (options.tls_ca, options.tls_cert, options.tls_key)
    names = ("authority", "certificate", "key")
    require_paths(("token file", options.token_file), *zip(names, files, strict=True))
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("a certificate needs its key", fix="give both --tls-cert and --tls-key")
    token = None if options.token_file is None else read_token(options.token_file).decode("ascii")
    client = ServiceClient(url=options.url, token=token, tls=client_tls(*files) if any(files) else None)
    parts = urlsplit(options.url)
    if parts.scheme == "http" and not _is_here(parts.hostname or ""):
        echo(
            "warning: the cases go to another machine without TLS",
            "  fix: give an https:// address",
            err=True,
            level=logging.WARNING,
        )
    elif parts.scheme == "http" and any(files):
        raise UsageError("TLS options have no effect with an http:// address", fix="give an https:// address")
    return client


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
