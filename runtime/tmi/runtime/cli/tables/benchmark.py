"""The figures of `tmi bench` as tables for people."""

from __future__ import annotations

from rich.table import Table

from tmi.runtime.benchmark.benchmark import BenchmarkReport, EngineBenchmark

GIB = 2**30


def engines_table(report: BenchmarkReport, *, rounds: int, cases: int) -> Table:
    """One row an engine; the times are medians."""
    table = Table(
        title=f"From a case's files to its answer, {rounds} rounds, {cases} case{'s' if cases > 1 else ''}",
        title_justify="left",
    )
    heads = ("engine", "precision", "p50 s", "p95 s", f"x {report.reference}", "cases/min", "start s", "peak GiB")
    for head in (*heads, f"|p - {report.reference}|", "decisions"):
        table.add_column(head, justify="left" if head in ("engine", "precision") else "right")
    for f in report.figures:
        table.add_row(
            f.engine,
            f.precision,
            f"{f.p50_seconds:.3g}",
            f"{f.p95_seconds:.3g}",
            _times(f),
            f"{f.cases_a_minute:.3g}",
            f"{f.start_seconds:.2f}",
            f"{f.peak_bytes / GIB:.2f}",
            f"{f.max_difference:.1e}",
            f"{len(f.changed_decisions)} changed" if f.changed_decisions else "equal",
        )
    return table


def stages_table(report: BenchmarkReport) -> Table:
    """Where the time of a warm prediction goes, in milliseconds; what no engine spends is left out."""
    names = dict.fromkeys(name for f in report.figures for name, s in f.stage_seconds.items() if s >= 5e-6)
    names = dict.fromkeys([n for n in names if n != "total"]) | {"total": None}
    table = Table(title="Stages of a warm prediction, milliseconds (medians, so the rows need not add up to the total)",
                  title_justify="left")  # fmt: skip
    table.add_column("engine")
    for name in names:
        table.add_column(name, justify="right")
    for f in report.figures:
        table.add_row(f.engine, *(f"{1000 * f.stage_seconds.get(n, 0.0):.3g}" for n in names))
    return table


def _times(f: EngineBenchmark) -> str:
    """The ratio to the reference as a gain: above 1 it is that many times quicker."""
    return f"{1 / f.to_reference.median:.2f}"
