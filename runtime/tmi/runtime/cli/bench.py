"""`tmi bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo, echo_json, make_console
from tmi.toolkit.cli.inputs import limit_to_cores, require_case_paths, resolve_bundle
from tmi.toolkit.cli.listing import print_listing
from tmi.toolkit.cli.progress import show_steps
from tmi.toolkit.errors import UsageError

if TYPE_CHECKING:
    from tmi.runtime.benchmark.benchmark import BenchmarkPlan, BenchmarkReport
    from tmi.runtime.bundle.reader import Bundle
    from tmi.runtime.engines.selection import EngineTimes
    from tmi.toolkit.cases.case import Case

    Auto = tuple[str, str, EngineTimes | None]
    """What `auto` takes, why, and the times of the engines."""

SCHEMA = "tmi-bench/1"
MIN_CT_VOXELS = 16
"""Minimum number of voxels along an axis of a synthetic CT."""


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    case: Annotated[
        list[Path] | None,
        typer.Argument(help="Case folders to measure with. Default: synthetic cases.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine to measure; may be repeated. Default: every installed one that has graphs in the bundle.",
            show_default=False,
            autocompletion=completes(of="tmi.runtime.engines.registry:ENGINES"),
        ),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Number of synthetic cases.")] = 2,
    ct: Annotated[str, typer.Option(help="Voxels of a synthetic CT, x, y, z.")] = "512x512x120",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; each runs every engine once.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Cases computed together in the run over all cases.")] = 1,
    mask_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N]",
            help="Value of the mask's voxels that are liver; several are joined. Default: all but 0.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each engine. Default: all cores.", show_default=False)
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-bench/1).")] = False,
) -> None:
    """Measure time and memory of a bundle's engines on this machine, and whether their predictions agree.

    Engines predict the same cases in turn, so that other work on the machine slows all of them alike: compare the
    ratios. Start: from a new process to its first prediction, with filled caches. Exit code 4: an engine differs from
    the reference by more than its declared bound. Another table shows the times from which --engine auto selects.

    Examples:

        tmi bench ./bundle
        tmi bench ./bundle case_a/ case_b/ --engine openvino --engine onnx --repeat 9 --json
    """
    import tempfile

    from tmi.runtime.benchmark.benchmark import BenchmarkPlan, choose_engines, measure
    from tmi.runtime.bundle.signing import open_trusted_bundle
    from tmi.runtime.cli.bench_worker import WORKER
    from tmi.runtime.serving.predictor import resolve_cases
    from tmi.runtime.serving.startup import chosen_by_auto
    from tmi.toolkit.cases.case import parse_mask_label

    shape_XYZ = _shape(ct)
    threads = limit_to_cores(threads, option="--threads")
    require_case_paths(case or ())
    bundle = resolve_bundle(bundle)
    opened = open_trusted_bundle(bundle, key)
    engines, skipped = choose_engines(engine or (), opened)
    with (
        tempfile.TemporaryDirectory(prefix="tmi-bench-") as folder,
        show_steps("opening") as step,
    ):
        if case:
            chosen = resolve_cases(case, mask_label=parse_mask_label(mask_label))
        else:
            step("writing synthetic cases")
            chosen = _synthetic_cases(opened, Path(folder), cases, shape_XYZ)
        plan = BenchmarkPlan(
            worker=WORKER,
            bundle=opened,
            key=key,
            engines=engines,
            named=bool(engine),
            cases=tuple(chosen),
            repeats=repeat,
            batch=batch,
            threads=threads,
        )
        report = measure(plan, passed_over=skipped, progress=step)
        auto = chosen_by_auto(opened, threads=threads, may_time=True, log=step)
    synthetic_XYZ = None if case else shape_XYZ
    if as_json:
        from tmi.toolkit.storage.hashing import canonical_json

        echo_json(canonical_json(_document(plan, report, auto, synthetic_XYZ)))
    else:
        _print(plan, report, auto, synthetic_XYZ)
    report.require_agreement()


def _shape(text: str) -> tuple[int, int, int]:
    """Parse voxels x, y, z from a text such as `512x512x120`."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdecimal() and int(p) >= MIN_CT_VOXELS for p in parts):
        raise UsageError(
            f"--ct {text} is not a CT size",
            fix=f"give three sizes of at least {MIN_CT_VOXELS} voxels, as 512x512x120",
        )
    x, y, z = (int(p) for p in parts)
    return x, y, z


def _synthetic_cases(bundle: Bundle, folder: Path, count: int, shape_XYZ: tuple[int, int, int]) -> list[Case]:
    from tmi.runtime.benchmark.synthetic_case import write_bench_case
    from tmi.runtime.bundle.contents import bundled_schema

    schema = bundled_schema(bundle)
    names = [f"made-up-{n}" for n in range(count)]
    return [write_bench_case(folder / name, schema, seed=n, shape_XYZ=shape_XYZ) for n, name in enumerate(names)]


def _document(
    plan: BenchmarkPlan, report: BenchmarkReport, auto: Auto, synthetic_XYZ: tuple[int, int, int] | None
) -> dict[str, Any]:
    import datetime
    from importlib.metadata import version

    from tmi.runtime.engines.host import hardware
    from tmi.toolkit.storage.serialization import to_json

    name, reason, times = auto
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": version("tmi-clnet"),
        "hardware": hardware(),
        "bundle": {"folder": str(plan.bundle.folder), "digest": plan.bundle.digest,
                   "preset": plan.bundle.manifest.preset, "folds": len(plan.bundle.manifest.folds)},
        "cases": [case.case_id for case in plan.cases],
        "made_up_ct_xyz": synthetic_XYZ,
        "repeats": plan.repeats,
        "starts": plan.starts,
        "batch": plan.batch,
        "auto": {"engine": name, "reason": reason, "times": None if times is None else to_json(times)},
        **to_json(report),
    }  # fmt: skip


def _print(
    plan: BenchmarkPlan, report: BenchmarkReport, auto: Auto, synthetic_XYZ: tuple[int, int, int] | None
) -> None:
    from tmi.runtime.cli.tables.benchmark import engines_table, stages_table, times_table
    from tmi.runtime.engines.host import hardware

    console = make_console()
    print_listing(console, engines_table(report, rounds=plan.repeats, cases=len(plan.cases)))
    print_listing(console, stages_table(report))
    chosen, reason, times = auto
    if times is not None:
        print_listing(console, times_table(times, chosen))
    ct = "x".join(map(str, synthetic_XYZ)) + " synthetic" if synthetic_XYZ else "as given"
    machine = hardware()
    packages = ", ".join(dict.fromkeys(f.package for f in report.figures))
    echo(f"CT {ct}; {machine['cpu']}, {report.figures[0].threads} threads; {packages}")
    for name, why in report.passed_over.items():
        echo(f"engine {name} was not measured: {why}")
    echo(f"--engine auto takes {chosen} ({reason})")
    echo("times hold for this machine and this run; compare engines by their ratio, not seconds across runs")
