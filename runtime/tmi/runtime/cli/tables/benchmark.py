"""Tables of `tmi bench`: time, memory and agreement of engines, and stages of a prediction."""

from __future__ import annotations

from tmi.runtime.benchmark.benchmark import BenchmarkReport, EngineBenchmark
from tmi.runtime.engines.selection import EngineTimes
from tmi.toolkit.cli.listing import Column, Listing

GIB = 2**30


def engines_table(report: BenchmarkReport, *, rounds: int, cases: int) -> Listing:
    """One row for each engine; times are medians over rounds."""
    columns = (
        Column("engine"),
        Column("precision", drop=4),
        Column("p50 s", right=True),
        Column("p95 s", right=True, drop=1),
        Column(f"x {report.reference}", right=True),
        Column("cases/min", right=True, drop=2),
        Column("start s", right=True, drop=3),
        Column("peak GiB", right=True, drop=6),
        Column(f"|p - {report.reference}|", right=True, drop=5),
        Column("decisions", right=True),
    )
    rows = [
        (
            f.engine,
            f.precision,
            f"{f.p50_seconds:.3g}",
            f"{f.p95_seconds:.3g}",
            _speedup(f),
            f"{f.cases_a_minute:.3g}",
            f"{f.start_seconds:.2f}",
            f"{f.peak_bytes / GIB:.2f}",
            f"{f.max_difference:.1e}",
            f"{len(f.changed_decisions)} changed" if f.changed_decisions else "equal",
        )
        for f in report.figures
    ]
    title = f"From the files of a case to its prediction, {rounds} rounds, {cases} case{'s' if cases > 1 else ''}"
    return Listing(columns=columns, rows=rows, title=title)


def stages_table(report: BenchmarkReport) -> Listing:
    """Time of each stage of a warm prediction in milliseconds; stages without time in every engine are omitted."""
    names = dict.fromkeys(name for f in report.figures for name, s in f.stage_seconds.items() if s >= 5e-6)
    names = dict.fromkeys([n for n in names if n != "total"]) | {"total": None}
    return Listing(
        columns=(Column("engine"), *(Column(name, right=True) for name in names)),
        rows=[(f.engine, *(f"{1000 * f.stage_seconds.get(n, 0.0):.3g}" for n in names)) for f in report.figures],
        title="Stages of a warm prediction, milliseconds (medians, so the rows need not add up to the total)",
    )


def times_table(times: EngineTimes, chosen: str) -> Listing:
    """What `auto` selects from: seconds of one pass of each engine, and how many times the quickest's they are."""
    least = min(times.seconds.values())
    rows = [
        (n, f"{times.seconds[n]:.3g}", f"{times.seconds[n] / least:.2f}") for n in times.order(tuple(times.seconds))
    ]
    rows += [(name, why, "") for name, why in times.untimed.items()]
    marked = [(f"{name} (auto)" if name == chosen else name, *cells) for name, *cells in rows]
    columns = (Column("engine"), Column(f"{times.passes} pass, s", right=True), Column("x quickest", right=True))
    return Listing(columns=columns, rows=marked, title=f"What --engine auto selects from, measured {times.created}")


def _speedup(f: EngineBenchmark) -> str:
    """Speed-up over the reference engine: above 1 the engine is that many times faster."""
    return f"{1 / f.to_reference.median:.2f}"
