"""`tmi predict`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tmi.runtime.prediction import Answer
    from tmi.runtime.predictor import Predictor
    from tmi.toolkit.case import Case


def predict(
    cases: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.", show_default=False)],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle to predict with. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="auto, openvino-bf16, openvino, onnx, torchscript, eager; on a GPU trt, trt-rtx, torch-trt."),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, or only an engine that computes in bf16 or in fp32.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Cases computed together.")] = 1,
    mask_label: Annotated[
        int | None,
        typer.Option(help="Value of the mask's voxels that are liver. Default: all but 0.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: all cores.", show_default=False)
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Keep prepared images, for predicting the same cases again.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) that must have signed the bundle.", envvar="TMI_KEY", show_default=False),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Skip the check at a bundle's first opening here; the record says so."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-prediction/1).")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the answers to FILE: JSON, or CSV where it ends in .csv."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
) -> None:
    """Predict the prognosis of cases with a bundle. For research use only.

    A case that is refused stops no other; the exit code is then 3.

    Examples:

        tmi predict case_a/
        tmi predict case_a/ case_b/ --bundle ./bundle --json -o answers.json
    """
    from tmi.runtime.prediction import Refusal
    from tmi.runtime.predictor import Predictor, resolve_cases
    from tmi.toolkit.prepared_cache import PreparedCache
    from tmi.toolkit.project import default_bundle, load_project

    if out is not None:
        _require_writable(out, force=force)
    if bundle is None:
        bundle, reason = default_bundle(load_project())
        typer.echo(f"bundle {bundle} ({reason})", err=True)
    found = resolve_cases(cases, mask_label=mask_label)
    kept = PreparedCache() if cache else None
    if no_verify:
        typer.echo("the check at a first opening is skipped (--no-verify)", err=True)
    tell = partial(typer.echo, err=True)
    opened = Predictor.open(
        bundle,
        engine=engine,
        precision=precision,
        threads=threads,
        key=key,
        verify=not no_verify,
        tell=tell,
        cache=kept,
    )
    with opened as predictor:
        record = predictor.engine_record
        typer.echo(f"engine {record.name} in {record.precision} ({record.reason})", err=True)
        answers = list(_with_progress(predictor, found, batch=batch))
        if kept is not None:
            typer.echo(kept.told(), err=True)
        _deliver(predictor, answers, batch=batch, as_json=as_json, out=out)
    if any(isinstance(a, Refusal) for a in answers):
        raise typer.Exit(int(ExitCode.REFUSED))


def _require_writable(out: Path, *, force: bool) -> None:
    """Before the work, not after it."""
    from tmi.toolkit.files import require_absent

    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written as a file", fix="name a file in a folder that exists")
    require_absent(out, force=force, kind="prediction file")


def _with_progress(predictor: Predictor, cases: Sequence[Case], *, batch: int) -> Iterator[Answer]:
    """The answers as they come; refusals, and for more than one case each answer, told on standard error."""
    from tmi.runtime.prediction import Refusal
    from tmi.toolkit.cli import report
    from tmi.toolkit.errors import InputRefusedError

    for number, answer in enumerate(predictor.stream(cases, batch=batch), start=1):
        if isinstance(answer, Refusal):
            state = f"refused ({answer.code})"
            report(InputRefusedError(answer.what, fix=answer.fix, code=answer.code, case_id=answer.case_id))
        else:
            state = f"{answer.seconds['total']:.2f} s"
        if len(cases) > 1:
            typer.echo(f"[{number}/{len(cases)}] {answer.case_id}: {state}", err=True)
        yield answer


def _deliver(predictor: Predictor, answers: Sequence[Answer], *, batch: int, as_json: bool, out: Path | None) -> None:
    """The table or the document on standard output, and the file."""
    import datetime
    from importlib.metadata import version

    from tmi.runtime.prediction import document
    from tmi.runtime.prediction_table import print_table, to_csv
    from tmi.toolkit.files import write_text
    from tmi.toolkit.hashing import canonical_json

    bundle, record = predictor.bundle, predictor.engine_record
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = canonical_json(
        document(answers, bundle=bundle, engine=record, batch=batch, created=created, version=version("tmi-clnet"))
    )
    if out is not None:
        write_text(out, to_csv(answers, bundle=bundle, engine=record) if out.suffix == ".csv" else text)
        typer.echo(f"written {out}", err=True)
    if as_json:
        sys.stdout.write(text)
    else:
        print_table(answers, bundle=bundle, engine=record)
