"""Tables of `tmi bench`: time, memory and agreement of engines, and stages of a prediction."""

from __future__ import annotations

from rich.table import Table

from tmi.runtime.benchmark.benchmark import BenchmarkReport, EngineBenchmark

GIB = 2**30


def engines_table(report: BenchmarkReport, *, rounds: int, cases: int) -> Table:
    """One row for each engine; times are medians over rounds."""
    table = Table(
        title=f"From the files of a case to its prediction, {rounds} rounds, {cases} case{'s' if cases > 1 else ''}",
        title_justify="left",
    )
    headings = ("engine", "precision", "p50 s", "p95 s", f"x {report.reference}", "cases/min", "start s", "peak GiB")
    for heading in (*headings, f"|p - {report.reference}|", "decisions"):
        table.add_column(heading, justify="left" if heading in ("engine", "precision") else "right")
    for f in report.figures:
        table.add_row(
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
    return table


def stages_table(report: BenchmarkReport) -> Table:
    """Time of each stage of a warm prediction in milliseconds; stages without time in every engine are omitted."""
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


def _speedup(f: EngineBenchmark) -> str:
    """Speed-up over the reference engine: above 1 the engine is that many times faster."""
    return f"{1 / f.to_reference.median:.2f}"
