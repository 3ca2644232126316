"""`tmi report`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.runtime.cli.explain import NoMemoryCheck
from tmi.runtime.cli.predict import TrustLevel
from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import limit_to_cores, require_case_paths, require_folder_name, resolve_bundle
from tmi.toolkit.cli.interrupts import interruptible
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.errors import ExitCode, InputRejectedError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from tmi.runtime.bundle.reader import Bundle
    from tmi.runtime.explanation.case_explanation import CaseExplanation
    from tmi.runtime.explanation.explainer import Explainer
    from tmi.runtime.serving.predictor import Predictor
    from tmi.runtime.serving.results import CaseResult
    from tmi.toolkit.cases.case import Case
    from tmi.toolkit.cli.progress import Task
    from tmi.toolkit.config.schema import Config

INDEX_FILE = "index.html"


def report(
    cases: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pages.", show_default=False)],
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="Engine of the prediction, as in tmi predict.",
            autocompletion=completes("auto", of="tmi.runtime.engines.registry:ENGINES"),
        ),
    ] = "auto",
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
    trust_level: TrustLevel = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the map and the contributions, which take most of the time.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted report: keep the pages whose inputs are the same."),
    ] = False,
    no_memory_check: NoMemoryCheck = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing report.")] = False,
) -> None:
    """Write a self-contained HTML page for each case, and an index. For research use only.

    A page holds the predictions of all folds, slices with the relevance map, attributions, warnings about the input,
    and the evidence of the bundle. It loads nothing from the network. A rejected case does not stop the others; the
    exit code is then 3.

    Examples:

        tmi report case_a/ --out report
        tmi report cohort/ --bundle ./bundle --out report --force
        tmi report cohort/ --out report --quick
        tmi report cohort/ --out report --resume
    """
    from contextlib import ExitStack
    from importlib.metadata import version

    from tmi.runtime.bundle.signing import open_trusted_bundle
    from tmi.runtime.engines.registry import engine_spec
    from tmi.runtime.engines.selection import AUTO
    from tmi.runtime.serving.predictor import Predictor, resolve_cases
    from tmi.runtime.serving.results import RejectedCase
    from tmi.toolkit.cases.case import parse_mask_label
    from tmi.toolkit.storage.atomic_files import write_text
    from tmi.toolkit.storage.outputs import output_lock

    require_case_paths(cases)
    require_folder_name(out, kind="report")
    if engine != AUTO:
        engine_spec(engine)  # its error lists the known engines
    threads = limit_to_cores(threads, option="--threads")
    with output_lock(out, kind="report"):
        _require_output(out, force=force, resume=resume)
        bundle = resolve_bundle(bundle)
        resolved = resolve_cases(cases, mask_label=parse_mask_label(mask_label))
        opened = open_trusted_bundle(bundle, key)  # once: explanations are of the bundle that predicts

        from tmi.runtime.report.pages import index_page  # torch, after all checks

        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with ExitStack() as stack:
            progress = stack.enter_context(show_progress())
            explainer = None
            if not quick:
                explainer = _open_explainer(opened, threads, progress.step, stack, checked=not no_memory_check)
            open_predictor = partial(Predictor.open, engine=engine, threads=threads, trust_level=trust_level)
            predictor = stack.enter_context(open_predictor(opened, log=partial(echo, err=True)))
            task = progress.add("writing pages", len(resolved), unit="cases")
            pages = _Pages(out=out, predictor=predictor, explainer=explainer, resume=resume, created=created)
            with interruptible(f"continue with the same command and --out {out} --resume"):
                results = _write_cases(resolved, pages, task)
            page = index_page(results, bundle=predictor.bundle, created=created, version=version("tmi-clnet"))
            write_text(out / INDEX_FILE, page)
        rejected = sum(isinstance(r, RejectedCase) for r in results)
        echo(f"report of {len(results) - rejected} case(s) in {out / INDEX_FILE}; {rejected} rejected")
        if rejected:
            raise typer.Exit(int(ExitCode.REJECTED))


@dataclass(frozen=True, kw_only=True)
class _Pages:
    """What every page of a report is written with."""

    out: Path
    """Folder of the report."""
    predictor: Predictor
    """The open bundle."""
    explainer: Explainer | None
    """Explainer of the same bundle; None with `--quick`."""
    resume: bool
    """Whether to keep finished pages."""
    created: str
    """UTC time, ISO 8601."""


def _require_output(out: Path, *, force: bool, resume: bool) -> None:
    """Raise before any work if `out` must not be written, or is nothing that `--resume` can continue."""
    from tmi.runtime.report.pages import CASES
    from tmi.toolkit.storage.atomic_files import require_absent

    if force and resume:
        raise UsageError(
            "--force and --resume exclude each other", fix="continue with --resume, or start again with --force"
        )
    if not resume:
        require_absent(out, force=force, kind="report")
    elif not (out / CASES).is_dir():
        try:
            require_absent(out, force=False, kind="report")  # nothing was written yet: an empty report
        except UsageError as error:
            fix = f"name the folder of an interrupted report, which holds {CASES}/"
            raise UsageError(f"{out} is not a report that can be continued", fix=fix) from error


def _open_explainer(
    bundle: Bundle, threads: int | None, step: Callable[[str], None], stack: ExitStack, *, checked: bool
) -> Explainer:
    """Open the weights of the bundle, whose self-test runs first; torch's threads are set until the stack closes.

    With `checked`, the memory of the machine is compared with the need before that.
    """
    from tmi.runtime.cli.explain import make_explainer
    from tmi.runtime.explanation.explainer import explanation_threads, torch_threads
    from tmi.runtime.explanation.model_source import bundle_models

    check = partial(_require_memory, bundle) if checked else (lambda config: None)
    source = bundle_models(bundle, threads=threads, log=partial(echo, err=True), check_memory=check)
    stack.enter_context(torch_threads(explanation_threads(source.config, threads)))
    return make_explainer(source, "ensemble", None, step)


def _require_memory(bundle: Bundle, config: Config) -> None:
    from tmi.runtime.explanation.memory_fit import require_explanation_memory

    # The engine of the prediction stays open with the graphs of all folds.
    graphs = max(
        sum(bundle.manifest.files[g.artefacts[kind]].bytes for g in bundle.manifest.graphs if kind in g.artefacts)
        for kind in {kind for g in bundle.manifest.graphs for kind in g.artefacts}
    )
    require_explanation_memory(
        config,
        folds=len(bundle.manifest.folds),
        sanity=False,
        beside=graphs,
        fix="--quick leaves out the map and the contributions; or use a machine with more memory; "
        "--no-memory-check explains as it is",
    )


def _write_cases(cases: Sequence[Case], pages: _Pages, task: Task) -> list[CaseResult]:
    """Write the page of every case; returns the predictions and the rejected cases, in order."""
    from time import perf_counter

    from tmi.runtime.cli.explain import report_rejection
    from tmi.runtime.serving.results import RejectedCase

    results: list[CaseResult] = []
    for number, case in enumerate(cases, start=1):
        start = perf_counter()
        result, kept = _write_case(case, pages)
        results.append(result)
        state = "kept" if kept else f"{perf_counter() - start:.1f} s"
        if isinstance(result, RejectedCase):
            report_rejection(result.to_error(), case)
            state = f"rejected ({result.code})"
        echo(f"[{number}/{len(cases)}] {case.case_id}: {state}", err=True)
        task.advance()
    return results


def _write_case(case: Case, pages: _Pages) -> tuple[CaseResult, bool]:
    """Write the page of a case; returns its result and whether a finished page was kept."""
    from importlib.metadata import version

    from tmi.runtime.bundle.contents import bundled_schema
    from tmi.runtime.report.finished_pages import finished_result, inputs_digest, page_record
    from tmi.runtime.report.pages import CASES, case_page
    from tmi.runtime.serving.results import RejectedCase
    from tmi.toolkit.cases.loaded import load_case
    from tmi.toolkit.qc.case_checks import check_case
    from tmi.toolkit.storage.atomic_files import write_text

    predictor, explainer = pages.predictor, pages.explainer
    bundle, engine, package = predictor.bundle, predictor.engine_record, version("tmi-clnet")
    page_file = pages.out / CASES / f"{case.case_id}.html"
    case = load_case(case)  # every part of the page is of the same bytes
    try:
        inputs = inputs_digest(
            case,
            bundle=bundle,
            engine=engine,
            quick=explainer is None,
            version=package,
            trust_level=predictor.trust_level,
        )
        finished = finished_result(page_file, inputs) if pages.resume else None
        if finished is not None:
            return finished, True
        (result,) = predictor.predict([case])
        if isinstance(result, RejectedCase):
            return result, False
        page = case_page(
            result,
            None if explainer is None else _explained(case, explainer),
            check_case(case, schema=bundled_schema(bundle)),
            case=case,
            bundle=bundle,
            engine=engine,
            created=pages.created,
            version=package,
            record=page_record(result, inputs),
        )
    except (InputRejectedError, UnavailableError) as error:
        return RejectedCase.of(error, case.case_id), False
    write_text(page_file, page)
    return result, False


def _explained(case: Case, explainer: Explainer) -> CaseExplanation:
    from tmi.runtime.explanation.case_explanation import explain_case

    return explain_case(case, explainer, steps=0, sanity=False)
