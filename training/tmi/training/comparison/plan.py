"""What a comparison trains: each configuration once, however many rows of tables it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.training.comparison.paper_tables import CLINICAL, CLINICAL_OVERRIDES, REFERENCE_MODEL, TABLES, Row, Table
from tmi.training.systems.registry import encoder_names, system_spec


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that a comparison needs."""

    key: str
    """Name of its folder."""
    label: str
    """Of the first row that it stands in."""
    config: Config
    """Its whole config."""
    weights: tuple[str, ...] = ()
    """The encoders that start from given weights: `ct`, `text`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a comparison, and which run is behind each row."""

    tables: tuple[Table, ...]
    """The tables asked for, with the rows asked for."""
    runs: tuple[PlannedRun, ...]
    """Each configuration once; TMI-CLNet first, as every row is tested against it."""
    run_of_row: dict[tuple[int | str, str], str]
    """(table, key of the row) -> key of the run."""
    not_applied: tuple[str, ...] = ()
    """What was asked for and which rows have no such part, in words."""


def select_tables(asked: str) -> tuple[Table, ...]:
    """The tables of `1`, `2`, `3`, `4`, `all` (of the paper) or `clinical`.

    Raises:
        UsageError: no such table.
    """
    if asked == "all":
        return tuple(TABLES.values())
    if asked == CLINICAL.number:
        return (CLINICAL,)
    if asked not in map(str, TABLES):
        raise UsageError(f"unknown table {asked!r}", fix=f"choose {', '.join(map(str, TABLES))}, all or clinical")
    return (TABLES[int(asked)],)


def make_plan(base: Config, tables: Sequence[Table], *, only: Sequence[str] = (), weights: Sequence[str] = ()) -> Plan:
    """The plan of some tables.

    Args:
        base: the config that the rows differ from; for the clinical table, the text encoder alone is taken of it.
        tables: tables of the paper.
        only: keys of rows; the others are left out, TMI-CLNet's own never. Empty: all rows.
        weights: encoders that weights are given for; a row without such an encoder starts without them.

    Raises:
        UsageError: `only` names a row that none of the tables has.
    """
    known = list(dict.fromkeys(row.key for table in tables for row in table.rows))
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise UsageError(f"no row {unknown[0]!r} in what is asked for", fix=f"known: {', '.join(known)}")
    if CLINICAL in tables:
        base = override(base, CLINICAL_OVERRIDES)
    asked, base = base, with_available_parts(base)
    runs = {REFERENCE_MODEL: PlannedRun(key=REFERENCE_MODEL, label="TMI-CLNet", config=base)}
    kept: list[Table] = []
    run_of_row: dict[tuple[int | str, str], str] = {}
    for table in tables:
        rows = []
        for row in table.rows:
            config = row_config(row, asked)
            if only and row.key not in only and config != base:
                continue
            same = next((r.key for r in runs.values() if r.config == config), None)
            if same is None:
                runs[row.key] = PlannedRun(key=row.key, label=row.label, config=config)
            rows.append(row)
            run_of_row[table.number, row.key] = same or row.key
        kept.append(replace(table, rows=tuple(rows)))
    planned = tuple(
        replace(run, weights=tuple(name for name in weights if name in encoder_names(run.config)))
        for run in runs.values()
    )
    return Plan(
        tables=tuple(kept), runs=planned, run_of_row=run_of_row, not_applied=_not_applied(asked, planned, weights)
    )


def _not_applied(base: Config, runs: Sequence[PlannedRun], weights: Sequence[str]) -> tuple[str, ...]:
    """A line for each part that was asked for and that some run's system has not."""
    lacking = {
        **{
            f"--freeze {part}": [r.key for r in runs if part not in r.config.train.freeze] for part in base.train.freeze
        },
        **{f"--{name}-weights": [r.key for r in runs if name not in r.weights] for name in weights},
    }
    if base.train.precision != "32":
        lacking[f"--precision {base.train.precision}"] = [
            r.key for r in runs if system_spec(r.config.system.name).backend == "sklearn"
        ]
    return tuple(
        f"{what} is not applied to what has no such part: {', '.join(keys)}" for what, keys in lacking.items() if keys
    )


def row_config(row: Row, base: Config) -> Config:
    """The config of a row; `train.freeze` keeps what the row's system has."""
    return with_available_parts(override(base, row.settings))


def with_available_parts(config: Config) -> Config:
    """The config with `train.freeze` cut down to the parts that its system has."""
    there = encoder_names(config)
    freeze = tuple(name for name in config.train.freeze if name.partition(":")[0] in there)
    return replace(config, train=replace(config.train, freeze=freeze))
