"""`tmi explain`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmi.runtime.cli.predict import TrustLevel
from tmi.toolkit.cli.console import echo, make_console
from tmi.toolkit.cli.inputs import (
    limit_to_cores,
    require_case_paths,
    require_folder_name,
    require_run,
    require_used_key,
    resolve_bundle,
)
from tmi.toolkit.cli.listing import Column, Listing, print_listing
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.errors import ExitCode, InputRejectedError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tmi.runtime.explanation.explainer import Explainer
    from tmi.runtime.explanation.model_source import ModelSource
    from tmi.toolkit.cases.case import Case
    from tmi.toolkit.cli.progress import Task
    from tmi.toolkit.config.schema import Config
    from tmi.toolkit.trust.p_values import Trust

    _Explained = tuple[dict[str, Any], Trust | None]
    """Document of a case, and its trust."""

NoMemoryCheck = Annotated[
    bool, typer.Option("--no-memory-check", help="Start even if the machine has less memory than an explanation needs.")
]
SUMMARY = (
    Column("case"),
    Column("decision"),
    Column("p(bad)", right=True),
    Column("for"),
    Column("liver", right=True),
    Column("CT only", right=True, drop=6),
    Column("body", right=True, drop=1),
    Column("points", right=True, drop=4),
    Column("insert", right=True, drop=3),
    Column("delete", right=True, drop=2),
    Column("random", right=True, drop=5),
)
"""Columns of the table that the command prints."""


def explain(
    context: typer.Context,
    cases: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output folder, with one subfolder a case.", show_default=False)
    ],
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
        typer.Option("--ct-only", help="Run of a CT-only network, shown for comparison.", show_default=False),
    ] = None,
    fold: Annotated[str, typer.Option("--fold", help="Number of a fold, or ensemble: mean of all folds.")] = "ensemble",
    target: Annotated[
        Literal["good", "bad"] | None,
        typer.Option("--target", help="Class that the map explains. Default: the predicted class.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Points of insertion and deletion curves; 0: none.")] = 8,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the curves and the sanity check, which need many network runs.")
    ] = False,
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
        int | None,
        typer.Option(
            "--threads", min=1, help="Threads. Default: all cores, one for a small CT input.", show_default=False
        ),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    trust_level: TrustLevel = None,
    no_memory_check: NoMemoryCheck = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing folders of cases.")] = False,
) -> None:
    """Explain predictions: a relevance map on the CT and attributions of features. For research use only.

    A rejected case does not stop the others; the exit code is then 3. Needs torch, because the maps use gradients.

    Examples:

        tmi explain case_a/ --out explained
        tmi explain cohort/ --run runs/first --fold 0 --target bad --out explained
        tmi explain case_a/ --run runs/first --ct-only runs/ct-only --out explained
        tmi explain case_a/ --bundle ./bundle --out explained --quick --force
    """
    from tmi.runtime.serving.predictor import resolve_cases
    from tmi.toolkit.cases.case import parse_mask_label
    from tmi.toolkit.run_folder import select_folds
    from tmi.toolkit.storage.outputs import output_lock

    if run is not None and bundle is not None:
        raise UsageError("--run and --bundle are given", fix="give one of the two")
    if run is not None:
        require_used_key(context, "a run has no signature", fix="omit it, or explain a signed bundle with --bundle")
    require_case_paths(cases)
    require_folder_name(out, kind="set of explanations")
    if run is not None:
        select_folds(fold, [split.fold for split in require_run(run).folds], of=f"run {run}")
    if ct_only is not None:
        require_run(ct_only, what="--ct-only run")
    threads = limit_to_cores(threads, option="--threads")
    resolved = resolve_cases(cases, mask_label=parse_mask_label(mask_label))
    with output_lock(out, kind="explanation"):
        require_absent_outputs([out / case.case_id for case in resolved], force=force)
        check = None if no_memory_check else partial(_require_memory, sanity=not quick)
        source = open_models(run, bundle, key=key, threads=threads, fold=fold, check_memory=check)

        from tmi.runtime.explanation.explainer import explanation_threads, torch_threads  # torch, after all checks

        ct_only_source = None if ct_only is None else _open_ct_only_run(ct_only)
        with torch_threads(explanation_threads(source.config, threads)), show_progress() as progress:
            task = progress.add("explaining", len(resolved), unit="cases")
            explainer = make_explainer(source, fold, target, progress.step, trust_level=trust_level)
            explained = _explain_all(
                resolved, explainer, ct_only_source, out, task, steps=0 if quick else steps, sanity=not quick
            )
        _summarise(explained, out, source)
        if len(explained) < len(resolved):
            raise typer.Exit(int(ExitCode.REJECTED))


def require_absent_outputs(folders: Sequence[Path], *, force: bool) -> None:
    """Raise before any case is explained if an output folder exists and `force` is not given."""
    from tmi.toolkit.storage.atomic_files import require_absent

    for folder in folders:
        require_absent(folder, force=force, kind="explanation")


def open_models(
    run: Path | None,
    bundle: Path | None,
    *,
    key: Sequence[Path] | None = None,
    threads: int | None = None,
    fold: str = "ensemble",
    check_memory: Callable[[Config, int], None] | None = None,
) -> ModelSource:
    """Open the models of a run, of a bundle, or of the default bundle, which is then named on standard error.

    A key must have signed the bundle; a run has no signature. A bundle's weights run the self-test first.
    `check_memory`, called with the config and the number of folds, raises before that if the machine has too little
    memory; None: it is not checked.

    Raises:
        DamagedError: the bundle is damaged or not signed by the key.
        ParityError: the bundle's weights do not give the outputs of the validated model.
        UnavailableError: too little memory.
        UsageError: no such run, bundle or fold, or a run of a CT-only network.
    """
    from tmi.runtime.bundle.signing import open_trusted_bundle
    from tmi.toolkit.run_folder import select_folds

    check = check_memory or (lambda config, folds: None)
    if run is not None:
        from tmi.runtime.explanation.model_source import open_run_models

        source = open_run_models(run)
        if source.ct_only:
            raise UsageError(
                f"run {run} uses the CT alone", fix="give a run of all three modalities, and this one as --ct-only"
            )
        check(source.config, len(source.select_folds(fold)))
        return source
    opened = open_trusted_bundle(resolve_bundle(bundle), key)
    folds = len(select_folds(fold, [spec.fold for spec in opened.manifest.folds], of=f"bundle {opened.folder}"))

    from tmi.runtime.explanation.model_source import bundle_models  # torch, after all checks

    return bundle_models(
        opened, threads=threads, log=partial(echo, err=True), check_memory=lambda config: check(config, folds)
    )


def _require_memory(config: Config, folds: int, *, sanity: bool) -> None:
    from tmi.runtime.explanation.memory_fit import require_explanation_memory

    fix = "close other programs, use a machine with more memory, or write pages without maps: tmi report --quick"
    fix = f"{fix}; --no-memory-check explains as it is"
    require_explanation_memory(
        config, folds=folds, sanity=sanity, fix=f"--quick leaves out the sanity check; {fix}" if sanity else fix
    )


def make_explainer(
    source: ModelSource,
    fold: str,
    target: str | None,
    step: Callable[[str], None] = lambda stage: None,
    *,
    trust_level: float | None = None,
) -> Explainer:
    """Create the explainer, which passes each of its stages to `step`."""
    from tmi.runtime.explanation.explainer import Explainer

    return Explainer(source, source.select_folds(fold), target=target, log=step, trust_level=trust_level)


def report_rejection(error: InputRejectedError | UnavailableError, case: Case) -> None:
    """Print the error of a rejected case."""
    from tmi.toolkit.cli.main import print_error

    print_error(InputRejectedError(error.what, fix=error.fix, code=error.code, case_id=case.case_id))


def _explain_all(
    cases: Sequence[Case],
    explainer: Explainer,
    ct_only_source: ModelSource | None,
    out: Path,
    task: Task,
    *,
    steps: int,
    sanity: bool,
) -> list[_Explained]:
    """Explain cases in order and write their files; returns those that were not rejected."""
    from time import perf_counter

    explained: list[_Explained] = []
    for number, case in enumerate(cases, start=1):
        start = perf_counter()
        try:
            one = _explain_one(case, explainer, ct_only_source, out, steps=steps, sanity=sanity)
        except (InputRejectedError, UnavailableError) as error:
            report_rejection(error, case)
            state = "rejected"
        else:
            explained.append(one)
            state = f"{perf_counter() - start:.1f} s"
        echo(f"[{number}/{len(cases)}] {case.case_id}: {state}", err=True)
        task.advance()
    return explained


def _explain_one(
    case: Case, explainer: Explainer, ct_only_source: ModelSource | None, out: Path, *, steps: int, sanity: bool
) -> _Explained:
    import datetime
    from importlib.metadata import version

    from tmi.runtime.explanation.case_explanation import case_document, explain_case
    from tmi.runtime.explanation.ct_only_baseline import ct_only_document, ct_only_map
    from tmi.runtime.explanation.files import write_explanation
    from tmi.toolkit.cases.loaded import load_case

    case = load_case(case)  # each file is read once: prediction, maps and pictures are of the same bytes
    explained = explain_case(case, explainer, steps=steps, sanity=sanity)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    ct_only = None
    if ct_only_source is not None:
        ct_only = ct_only_map(ct_only_source, case, explained.anatomy, target=explained.explanation.target)
    document = case_document(
        explained,
        created=created,
        version=version("tmi-clnet"),
        ct_only=None if ct_only is None else ct_only_document(ct_only),
    )
    row = None
    if ct_only is not None:
        row = (_row_title("CT only", ct_only.probability, ct_only.localization.in_liver), ct_only)
    explanation = explained.explanation
    title = f"{case.case_id}: {explanation.decision}; "
    title += _row_title("fused", explanation.probability, explained.localization.in_liver)
    title += f"; evidence for {explanation.target!r}"
    write_explanation(out / case.case_id, explained, document, title=title, ct_only=row)
    return document, explanation.trust


def _row_title(name: str, probability: Mapping[str, float], in_liver: float | None) -> str:
    """Title of a row of pictures: model, probability, share of the map in the liver."""
    inside = "" if in_liver is None else f"; {in_liver:.0%} of the map in the liver"
    return f"{name}, p(bad) {probability['bad']:.3f}{inside}"


def _open_ct_only_run(run: Path) -> ModelSource:
    from tmi.runtime.explanation.ct_only_baseline import require_ct_only
    from tmi.runtime.explanation.model_source import open_run_models

    return require_ct_only(open_run_models(run))


def _summarise(explained: Sequence[_Explained], out: Path, source: ModelSource) -> None:
    from tmi.runtime.serving.results import RESEARCH_USE
    from tmi.runtime.serving.trust import trust_lines

    documents, rows = [document for document, _ in explained], []
    for document in documents:
        places, curves = document["map"]["places"], document["map"]["curves"]
        last = document["map"]["randomised"][-1:]
        cells = (
            document["case_id"],
            document["decision"],
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
        rows.append(cells)
    for document in documents:
        for alert in document["alerts"]:
            echo(f"attention: {document['case_id']}: {alert['message']} [{alert['code']}]", f"  fix: {alert['fix']}")
    if documents:
        print_listing(make_console(), Listing(columns=SUMMARY, rows=rows))
        echo("liver, body: share of the map inside; CT only: the CT-only model's share in the liver")
        echo("points: whether the largest value lies in the liver; insert, delete: areas under the curves")
        echo("random: rank correlation with the map of randomised weights; near 0 is good")
        for line in trust_lines([(document["case_id"], trust) for document, trust in explained]):
            echo(line)
    origin = " of a synthetic cohort" if source.synthetic else ""
    echo(f"{len(documents)} case(s) explained in {out}; models: {source.kind} {source.digest[:16]}{origin}")
    echo(RESEARCH_USE)


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
