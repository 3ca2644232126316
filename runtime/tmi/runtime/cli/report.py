"""`tmi report`."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cli.console import echo
from tmi.toolkit.errors import ExitCode, InputRejectedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmi.runtime.explain.explainer import Explainer
    from tmi.runtime.serving.predictor import Predictor
    from tmi.runtime.serving.results import CaseResult
    from tmi.toolkit.cases.case import Case

INDEX_FILE = "index.html"


def report(
    cases: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pages.", show_default=False)],
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Engine of the prediction, as in tmi predict.")] = "auto",
    mask_label: Annotated[
        list[str] | None,
        typer.Option(
            "--mask-label",
            metavar="N[,N]",
            help="Label of the liver in the masks; several are joined. Default: all but 0.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads. Default: all cores.", show_default=False)
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing report.")] = False,
) -> None:
    """Write a self-contained HTML page for each case, and an index. For research use only.

    A page holds the predictions of all folds, slices with the relevance map, attributions, warnings about the input,
    and the evidence of the bundle. It loads nothing from the network. A rejected case does not stop the others; the
    exit code is then 3.

    Examples:

        tmi report case_a/ --out report
        tmi report cohort/ --bundle ./bundle --out report --force
    """
    from importlib.metadata import version

    from tmi.runtime.bundle.signing import open_trusted_bundle
    from tmi.runtime.cli.explain import make_explainer
    from tmi.runtime.explain.explainer import torch_threads
    from tmi.runtime.explain.model_source import bundle_models
    from tmi.runtime.report.pages import index_page
    from tmi.runtime.serving.predictor import Predictor, resolve_cases
    from tmi.runtime.serving.results import RejectedCase
    from tmi.toolkit.cases.case import parse_mask_label
    from tmi.toolkit.config.project import default_bundle, load_project
    from tmi.toolkit.storage.atomic_files import require_absent, write_text
    from tmi.toolkit.storage.outputs import output_lock

    with output_lock(out, kind="report"):
        require_absent(out, force=force, kind="report")
        if bundle is None:
            bundle, reason = default_bundle(load_project())
            echo(f"bundle {bundle} ({reason})", err=True)
        resolved = resolve_cases(cases, mask_label=parse_mask_label(mask_label))
        opened = open_trusted_bundle(bundle, key)  # once: explanations are of the bundle that predicts
        source = bundle_models(opened, threads=threads, log=partial(echo, err=True))
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (
            Predictor.open(opened, engine=engine, threads=threads, log=partial(echo, err=True)) as predictor,
            torch_threads(threads),
        ):
            explainer = make_explainer(source, "ensemble", None)
            results = _write_cases(resolved, predictor, explainer, out, created=created)
            page = index_page(results, bundle=predictor.bundle, created=created, version=version("tmi-clnet"))
            write_text(out / INDEX_FILE, page)
        rejected = sum(isinstance(r, RejectedCase) for r in results)
        echo(f"report of {len(results) - rejected} case(s) in {out / INDEX_FILE}; {rejected} rejected")
        if rejected:
            raise typer.Exit(int(ExitCode.REJECTED))


def _write_cases(
    cases: Sequence[Case], predictor: Predictor, explainer: Explainer, out: Path, *, created: str
) -> list[CaseResult]:
    """Write the page of every case; returns the predictions and the rejected cases, in order."""
    from time import perf_counter

    from tmi.runtime.cli.explain import report_rejection
    from tmi.runtime.serving.results import RejectedCase

    results: list[CaseResult] = []
    for number, case in enumerate(cases, start=1):
        start = perf_counter()
        result = _write_case(case, predictor, explainer, out, created=created)
        results.append(result)
        state = f"{perf_counter() - start:.1f} s"
        if isinstance(result, RejectedCase):
            report_rejection(InputRejectedError(result.what, fix=result.fix, code=result.code), case)
            state = f"rejected ({result.code})"
        echo(f"[{number}/{len(cases)}] {case.case_id}: {state}", err=True)
    return results


def _write_case(case: Case, predictor: Predictor, explainer: Explainer, out: Path, *, created: str) -> CaseResult:
    from importlib.metadata import version

    from tmi.runtime.explain.case_explanation import explain_case
    from tmi.runtime.report.pages import CASES, case_page
    from tmi.runtime.serving.results import RejectedCase
    from tmi.toolkit.qc.case_checks import check_case
    from tmi.toolkit.storage.atomic_files import write_text

    (result,) = predictor.predict([case])
    if isinstance(result, RejectedCase):
        return result
    try:
        explained = explain_case(case, explainer, steps=0, sanity=False)
        page = case_page(
            result,
            explained,
            check_case(case, schema=explainer.source.schema),
            bundle=predictor.bundle,
            engine=predictor.engine_record,
            created=created,
            version=version("tmi-clnet"),
        )
    except InputRejectedError as error:
        return RejectedCase(case_id=case.case_id, code=error.code, what=error.what, fix=error.fix)
    except UnavailableError as error:
        return RejectedCase(case_id=case.case_id, code="unavailable", what=error.what, fix=error.fix)
    write_text(out / CASES / f"{case.case_id}.html", page)
    return result
