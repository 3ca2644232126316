"""`tmi explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmi.toolkit.errors import ExitCode, InputRejectedError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tmi.runtime.explain.explainer import Explainer
    from tmi.runtime.explain.model_source import ModelSource
    from tmi.toolkit.cases.case import Case


def explain(
    cases: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; each case gets one in it.", show_default=False)],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run whose models are explained.", show_default=False)
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Bundle instead of a run. Default: TMI_BUNDLE, else ./bundle.", show_default=False
        ),
    ] = None,
    ct_only: Annotated[
        Path | None,
        typer.Option("--ct-only", help="Run of a network that sees the CT alone, shown beside.", show_default=False),
    ] = None,
    fold: Annotated[str, typer.Option("--fold", help="A fold's number, or ensemble: the mean of all.")] = "ensemble",
    target: Annotated[
        Literal["good", "bad"] | None,
        typer.Option("--target", help="Class that the map explains. Default: the one decided for.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Points of insertion and deletion curves; 0: none.")] = 8,
    quick: Annotated[
        bool, typer.Option("--quick", help="No curves and no sanity check, which run the network again and again.")
    ] = False,
    mask_label: Annotated[
        int | None,
        typer.Option("--mask-label", help="Label of the liver in the masks. Default: all but 0.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads. Default: all cores.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folders of cases that are there.")] = False,
) -> None:
    """Show what the models looked at: a map on the CT, and what pulled the answer which way. For research use only.

    A case that is refused stops no other; the exit code is then 3. Needs torch, whose gradients the maps are made of.

    Examples:

        tmi explain case_a/ --out explained
        tmi explain cohort/ --run runs/first --fold 0 --target bad --out explained
        tmi explain case_a/ --run runs/first --ct-only runs/ct-only --out explained
        tmi explain case_a/ --bundle ./bundle --out explained --quick --force
    """
    from tmi.runtime.explain.explainer import torch_threads
    from tmi.runtime.serving.predictor import resolve_cases

    if run is not None and bundle is not None:
        raise UsageError("--run and --bundle are given", fix="give one of the two")
    found = resolve_cases(cases, mask_label=mask_label)
    require_absent_outputs([out / case.case_id for case in found], force=force)
    source = open_models(run, bundle)
    ct_only_source = None if ct_only is None else _open_ct_only_run(ct_only)
    with torch_threads(threads):
        explainer = make_explainer(source, fold, target)
        done = _explain_all(found, explainer, ct_only_source, out, steps=0 if quick else steps, sanity=not quick)
    _summarise(done, out, source)
    if len(done) < len(found):
        raise typer.Exit(int(ExitCode.REJECTED))


def require_absent_outputs(folders: Sequence[Path], *, force: bool) -> None:
    """Before the work, not after it: nothing is overwritten without being told to."""
    from tmi.toolkit.storage.atomic_files import require_absent

    for folder in folders:
        require_absent(folder, force=force, kind="explanation")


def open_models(run: Path | None, bundle: Path | None) -> ModelSource:
    """The run or bundle; what was assumed is told on standard error.

    Raises:
        UsageError: no such run or bundle, or a run of the CT alone.
    """
    from tmi.runtime.explain.model_source import open_bundle_models, open_run_models
    from tmi.toolkit.config.project import default_bundle, load_project

    if run is not None:
        source = open_run_models(run)
        if source.ct_only:
            raise UsageError(
                f"run {run} sees the CT alone", fix="give a run of all three modalities, and this one as --ct-only"
            )
        return source
    if bundle is None:
        bundle, reason = default_bundle(load_project())
        typer.echo(f"bundle {bundle} ({reason})", err=True)
    return open_bundle_models(bundle)


def make_explainer(source: ModelSource, fold: str, target: str | None) -> Explainer:
    """The explainer; its stages are told on standard error where that is a terminal."""
    from tmi.runtime.explain.explainer import Explainer

    def log(words: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"  {words} ...", err=True)

    return Explainer(source, source.select_folds(fold), target=target, log=log)


def report_rejection(error: InputRejectedError | UnavailableError, case: Case) -> None:
    """Tell of a case that is left out; the others go on."""
    from tmi.toolkit.cli.main import print_error

    code = error.code if isinstance(error, InputRejectedError) else "unavailable"
    print_error(InputRejectedError(error.what, fix=error.fix, code=code, case_id=case.case_id))


def _explain_all(
    cases: Sequence[Case],
    explainer: Explainer,
    ct_only_source: ModelSource | None,
    out: Path,
    *,
    steps: int,
    sanity: bool,
) -> list[dict[str, Any]]:
    """Documents of the cases that were explained; their files are written one case after the other."""
    from time import perf_counter

    done: list[dict[str, Any]] = []
    for number, case in enumerate(cases, start=1):
        start = perf_counter()
        try:
            document = _explain_one(case, explainer, ct_only_source, out, steps=steps, sanity=sanity)
        except (InputRejectedError, UnavailableError) as error:
            report_rejection(error, case)
            state = "refused"
        else:
            done.append(document)
            state = f"{perf_counter() - start:.1f} s"
        typer.echo(f"[{number}/{len(cases)}] {case.case_id}: {state}", err=True)
    return done


def _explain_one(
    case: Case, explainer: Explainer, ct_only_source: ModelSource | None, out: Path, *, steps: int, sanity: bool
) -> dict[str, Any]:
    import datetime
    from importlib.metadata import version

    from tmi.runtime.explain.case_explanation import case_document, explain_case
    from tmi.runtime.explain.ct_only_baseline import ct_only_document, ct_only_map
    from tmi.runtime.explain.files import write_explanation

    explained = explain_case(case, explainer, steps=steps, sanity=sanity)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    other = None
    if ct_only_source is not None:
        other = ct_only_map(ct_only_source, case, explained.anatomy, target=explained.explanation.target)
    document = case_document(
        explained,
        created=created,
        version=version("tmi-clnet"),
        ct_only=None if other is None else ct_only_document(other),
    )
    row = None if other is None else (_row_title("CT only", other.probability, other.localization.in_liver), other)
    title = f"{case.case_id}: {_row_title('fused', explained.explanation.probability, explained.localization.in_liver)}"
    title += f"; what speaks for {explained.explanation.target!r}"
    write_explanation(out / case.case_id, explained, document, title=title, ct_only=row)
    return document


def _row_title(name: str, probability: Mapping[str, float], in_liver: float | None) -> str:
    """Over a row of pictures: which model, its answer, the share of the map in the liver."""
    inside = "" if in_liver is None else f"; {in_liver:.0%} of the map in the liver"
    return f"{name}, p(bad) {probability['bad']:.3f}{inside}"


def _open_ct_only_run(run: Path) -> ModelSource:
    from tmi.runtime.explain.ct_only_baseline import require_ct_only
    from tmi.runtime.explain.model_source import open_run_models

    return require_ct_only(open_run_models(run))


def _summarise(done: Sequence[dict[str, Any]], out: Path, source: ModelSource) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from tmi.runtime.serving.results import RESEARCH_USE

    # narrow enough for 80 columns
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    titles = ("case", "p(bad)", "for", "liver", "CT only", "body", "points", "insert", "delete", "random")
    for title in titles:
        table.add_column(title, justify="left" if title in ("case", "for") else "right")
    for document in done:
        places, curves = document["map"]["places"], document["map"]["curves"]
        last = document["map"]["randomised"][-1:]
        table.add_row(
            document["case_id"],
            f"{document['probability']['bad']:.3f}",
            document["target"],
            _format_value(places["in_liver"]),
            _format_value(document["ct_only"] and document["ct_only"]["places"]["in_liver"]),
            _format_value(places["in_body"]),
            "-" if places["pointing"] is None else "yes" if places["pointing"] else "no",
            _format_value(curves and curves["insertion_auc"]),
            _format_value(curves and curves["deletion_auc"]),
            _format_value(last[0]["rank_correlation"] if last else None),
        )
    console = Console()
    if done:
        console.print(table)
        typer.echo("liver, body: share of the map inside; CT only: the CT-only model's share in the liver")
        typer.echo("points: whether the largest value lies in the liver; insert, delete: areas under the curves")
        typer.echo("random: rank correlation with the map of randomised weights; near 0 is good")
    about = " of a synthetic cohort" if source.synthetic else ""
    typer.echo(f"{len(done)} case(s) explained in {out}; models: {source.kind} {source.digest[:16]}{about}")
    typer.echo(RESEARCH_USE)


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
