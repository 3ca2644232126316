"""`tmi predict`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.cli.inputs import limit_to_cores, require_case_paths, resolve_bundle
from tmi.toolkit.cli.interrupts import interruptible
from tmi.toolkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmi.runtime.bundle.reader import Bundle
    from tmi.runtime.engines.selection import EngineRecord
    from tmi.runtime.serving.results import CaseResult

FORMATS = (".json", ".csv", ".jsonl")
"""Endings of output files; each is written in its own format."""
TrustLevel = Annotated[
    float | None,
    typer.Option(
        "--trust-level",
        help="Largest p-value at which a case is not trusted. Default: the bundle's.",
        show_default=False,
    ),
]
"""Option of `tmi predict`, `serve` and `report`."""


def predict(
    cases: Annotated[
        list[Path], typer.Argument(help="Case folders or cohort folders.", show_default=False, readable=False)
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle to predict with. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="auto; on the CPU openvino, openvino-bf16, openvino-int8, onnx, onnx-int8, torchscript, eager; "
            "on a GPU trt, trt-rtx, torch-trt, onnx-cuda, onnx-cuda-fp16.",
            autocompletion=completes("auto", of="tmi.runtime.engines.registry:ENGINES"),
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto, or int8, bf16 or fp32 for engines that compute in it only.",
            autocompletion=completes(of="tmi.runtime.engines.precision:ALLOWED_PRECISIONS"),
        ),
    ] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Cases computed together.")] = 1,
    mask_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N]",
            help="Value of the mask's voxels that are liver; several are joined. Default: all but 0.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: all cores.", show_default=False)
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Cache prepared images, for predicting the same cases again.")
    ] = False,
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="Cache features of CT and text encoders, for predicting the same cases again."),
    ] = False,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Skip the startup self-test; this is recorded."),
    ] = False,
    trust_level: TrustLevel = None,
    coverage: Annotated[
        float, typer.Option("--coverage", help="Coverage of the prediction sets, between 0 and 1.")
    ] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-prediction/3).")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the results to FILE: .json, .csv or .jsonl by its ending."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a FILE that was not finished.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only part I of N of the cases, by a hash of their ids; `tmi collect` joins the parts.",
            show_default=False,
        ),
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Print the time of each stage.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 3 also for a prediction with an alert.")] = False,
    dicom: Annotated[
        Path | None,
        typer.Option(
            help="Write the result of one case to this folder as DICOM: report and liver.", show_default=False
        ),
    ] = None,
    dicom_source: Annotated[
        Path | None,
        typer.Option(help="Folder of the DICOM series that the case was imported from.", show_default=False),
    ] = None,
    uid_root: Annotated[
        str | None,
        typer.Option(help="Root of the UIDs of DICOM results. Default: UIDs derived from UUIDs.", show_default=False),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="Send the cases to `tmi serve` at this URL instead of opening a bundle.", show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of the service.", show_default=False)
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="Authority (PEM) of the service's certificate. Default: the system's.", show_default=False),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of this client (PEM) for the service.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the client's certificate (PEM).", show_default=False)
    ] = None,
) -> None:
    """Predict the prognosis of cases with a bundle. For research use only.

    A rejected case does not stop the others; the exit code is then 3. The decision of a prediction with an alert is
    withheld: not-trusted or not-decided.

    Examples:

        tmi predict case_a/
        tmi predict case_a/ case_b/ --bundle ./bundle --json -o predictions.json
        tmi predict case_a/ --dicom results/ --dicom-source series/
        tmi predict cohort/ --shard 3/10 --resume -o part.3.jsonl
        tmi predict cohort/ --server https://tmi.hospital.example:8080 --token-file token --batch 4
    """
    from tmi.runtime.cli.predict_dicom import DicomOptions, open_source, require_dicom, write_dicom
    from tmi.runtime.cli.predict_remote import ServerOptions, predict_remotely, require_remote
    from tmi.runtime.cli.progress import run_cases
    from tmi.runtime.cli.tables.timing import print_timing
    from tmi.runtime.serving.predictor import Predictor, resolve_cases
    from tmi.toolkit.cases.case import parse_mask_label
    from tmi.toolkit.cases.shard import Shard
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.toolkit.storage.outputs import output_lock

    require_case_paths(cases)
    service = ServerOptions(url=server or "", token_file=token_file, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
    if server is not None:
        given = {
            "--bundle": bundle, "--engine": engine != "auto", "--precision": precision != "auto", "--threads": threads,
            "--trust-level": trust_level, "--coverage": coverage != 0.9, "--cache": cache, "--reuse": reuse,
            "--no-verify": no_verify, "--resume": resume, "--shard": shard, "--dicom": dicom,
        }  # fmt: skip
        require_remote({name: value not in (None, False) for name, value in given.items()}, out)
    elif any((token_file, tls_ca, tls_cert, tls_key)):
        raise UsageError("options of a service have no effect without --server", fix="give --server URL")
    threads = limit_to_cores(threads, option="--threads")
    if out is None and resume:
        raise UsageError("--resume continues a file, and none is named", fix="name it with -o FILE")
    part = None if shard is None else Shard.parse(shard)
    if part is not None and (out is None or out.suffix.lower() != ".jsonl"):
        raise UsageError("a shard is written as a result log", fix=f"name one with -o part.{part.number}.jsonl")
    if out is not None:
        require_writable(out, force=force, resume=resume)
    objects = DicomOptions(out=dicom, source=dicom_source, uid_root=uid_root)
    require_dicom(objects, force=force)
    with nullcontext() if out is None else output_lock(out, kind="prediction file"):  # fails before the work
        labels = parse_mask_label(mask_label)
        if server is not None:
            found = resolve_cases(cases, mask_label=labels)
            results = predict_remotely(found, service, at_a_time=batch, as_json=as_json, out=out)
            if timing:
                print_timing(results)
            exit_if_rejected(results, strict=strict)
            return
        bundle = resolve_bundle(bundle)
        resolved = resolve_cases(cases, mask_label=labels)
        if part is not None:
            in_cohort, resolved = len(resolved), part.select(resolved)
            echo(f"shard {part}: {len(resolved)} of {in_cohort} cases", err=True)
        source = open_source(objects, resolved)
        prepared_cache = PreparedCache() if cache else None
        if no_verify:
            echo("the startup self-test is skipped (--no-verify)", err=True)
        log = partial(echo, err=True)
        opened = Predictor.open(
            bundle,
            engine=engine,
            precision=precision,
            threads=threads,
            key=key,
            verify=not no_verify,
            trust_level=trust_level,
            coverage=coverage,
            log=log,
            cache=prepared_cache,
            reuse=reuse,
        )
        with opened as predictor:
            record = predictor.engine_record
            echo(f"engine {record.name} in {record.precision} ({record.reason})", err=True)
            again = "the same command starts again" if out is None else "continue with the same command and --resume"
            with interruptible(again):
                results = run_cases(
                    predictor, resolved, batch=batch, mask_label=labels, out=out, resume=resume, shard=part
                )
            for store in (prepared_cache, predictor.embeddings):
                if store is not None:
                    echo(store.summary(), err=True)
            if timing:
                print_timing(results)
            print_results(results, predictor.bundle, record, batch=batch, as_json=as_json, out=out)
            if source is not None:
                write_dicom(results, resolved, source, objects, bundle=predictor.bundle, engine=record)
        exit_if_rejected(results, strict=strict)


def exit_if_rejected(results: Sequence[CaseResult], *, strict: bool) -> None:
    """End with exit code 3 if a case was rejected; `strict`: or has an alert."""
    from tmi.runtime.serving.results import RejectedCase

    if any(isinstance(r, RejectedCase) or (strict and r.reasons) for r in results):
        raise typer.Exit(int(ExitCode.REJECTED))


def require_writable(out: Path, *, force: bool, resume: bool) -> None:
    """Check the output options before any case is predicted."""
    from tmi.runtime.serving.result_log import result_log_path
    from tmi.toolkit.storage.atomic_files import require_absent

    if out.suffix.lower() not in ("", *FORMATS):
        raise UsageError(
            f"predictions are not written as {out.suffix}: {out}",
            fix=f"name a file that ends in {', '.join(FORMATS)}, or without an ending for JSON",
        )
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written as a file", fix="name a file in a folder that exists")
    unfinished = result_log_path(out)
    if unfinished != out or not resume:
        require_absent(out, force=force, kind="prediction file")
    if unfinished.exists() and not (force or resume):
        raise UsageError(
            f"unfinished prediction {unfinished} exists", fix="continue with --resume, or start again with --force"
        )
    if force and resume:
        raise UsageError("--force starts again and --resume continues", fix="give one of the two")


def print_results(
    results: Sequence[CaseResult], bundle: Bundle, record: EngineRecord, *, batch: int, as_json: bool, out: Path | None
) -> None:
    """Print the table or the JSON document on standard output, and write the output file."""
    import datetime
    from importlib.metadata import version

    from tmi.runtime.cli.tables.predictions import print_table, to_csv
    from tmi.runtime.serving.result_log import result_log_path
    from tmi.runtime.serving.results import document
    from tmi.toolkit.storage.atomic_files import write_text
    from tmi.toolkit.storage.hashing import canonical_json

    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = canonical_json(
        document(results, bundle=bundle, engine=record, batch=batch, created=created, version=version("tmi-clnet"))
    )
    if out is not None:
        unfinished = result_log_path(out)
        if unfinished != out:
            write_text(out, to_csv(results, bundle=bundle, engine=record) if out.suffix.lower() == ".csv" else text)
            unfinished.unlink(missing_ok=True)  # last: a kill before this line leaves a log that can be resumed
        echo(f"written {out}", err=True)
    if as_json:
        echo_json(text)
    else:
        print_table(results, bundle=bundle, engine=record)
