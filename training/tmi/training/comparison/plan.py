"""Plan of a comparison: each configuration is trained once, even if several rows use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.models.registry import configured_model, encoder_names
from tmi.training.comparison.paper_tables import CLINICAL, CLINICAL_OVERRIDES, OWN_TABLES, TABLES, Row, Table

RUNS = "runs"
"""Folder of the runs inside the folder of a comparison."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that a comparison needs."""

    key: str
    """Name of its folder."""
    label: str
    """Label of the first row that uses the run."""
    config: Config
    """Config of the run."""
    weights: tuple[str, ...] = ()
    """Encoders that start from pre-trained weights: `ct`, `text`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Runs of a comparison and the run of each row."""

    tables: tuple[Table, ...]
    """Requested tables with the requested rows."""
    runs: tuple[PlannedRun, ...]
    """Distinct runs; TMI-CLNet first, since every row is tested against it."""
    run_of_row: dict[tuple[int | str, str], str]
    """(table, key of the row) -> key of the run."""
    not_applied: tuple[str, ...] = ()
    """One line for each requested option that some rows have no part for."""


def select_tables(name: str) -> tuple[Table, ...]:
    """Return the tables of `1`, `2`, `3`, `4`, `all` (of the paper), `clinical` or `baselines`.

    Raises:
        UsageError: unknown table.
    """
    if name == "all":
        return tuple(TABLES.values())
    if name in OWN_TABLES:
        return (OWN_TABLES[name],)
    if name not in map(str, TABLES):
        known = ", ".join((*map(str, TABLES), "all", *OWN_TABLES))
        raise UsageError(f"unknown table {name!r}", fix=f"choose one of {known}")
    return (TABLES[int(name)],)


def make_plan(base: Config, tables: Sequence[Table], *, only: Sequence[str] = (), weights: Sequence[str] = ()) -> Plan:
    """Make the plan of the given tables.

    Args:
        base: config that the rows modify; the clinical table uses its text encoder alone.
        tables: tables to train.
        only: keys of the rows to train, in addition to TMI-CLNet's own; empty: all rows.
        weights: encoders with pre-trained weights; a row without such an encoder starts without them.

    Raises:
        UsageError: `only` names a row that none of the tables has.
    """
    known = list(dict.fromkeys(row.key for table in tables for row in table.rows))
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise UsageError(f"no row {unknown[0]!r} in the selected tables", fix=f"known: {', '.join(known)}")
    if CLINICAL in tables:
        base = override(base, CLINICAL_OVERRIDES)
    requested, base = base, with_available_parts(base)
    runs = {REFERENCE_MODEL: PlannedRun(key=REFERENCE_MODEL, label="TMI-CLNet", config=base)}
    planned_tables: list[Table] = []
    run_of_row: dict[tuple[int | str, str], str] = {}
    for table in tables:
        rows = []
        for row in table.rows:
            config = row_config(row, requested)
            if only and row.key not in only and config != base:
                continue
            # rows share a run if their configs are equal, whatever their keys
            shared = next((r.key for r in runs.values() if r.config == config), None)
            if shared is None:
                runs[row.key] = PlannedRun(key=row.key, label=row.label, config=config)
            rows.append(row)
            run_of_row[table.number, row.key] = shared or row.key
        planned_tables.append(replace(table, rows=tuple(rows)))
    planned = tuple(
        replace(run, weights=tuple(name for name in weights if name in encoder_names(run.config)))
        for run in runs.values()
    )
    return Plan(
        tables=tuple(planned_tables),
        runs=planned,
        run_of_row=run_of_row,
        not_applied=_not_applied(requested, planned, weights),
    )


def _not_applied(base: Config, runs: Sequence[PlannedRun], weights: Sequence[str]) -> tuple[str, ...]:
    """One line for each requested option that some runs' models have no part for."""
    missing = {
        **{
            f"--freeze {part}": [r.key for r in runs if part not in r.config.train.freeze] for part in base.train.freeze
        },
        **{f"--{name}-weights": [r.key for r in runs if name not in r.weights] for name in weights},
    }
    if base.train.precision != "32":
        missing[f"--precision {base.train.precision}"] = [
            r.key for r in runs if configured_model(r.config).trainer == "sklearn"
        ]
    return tuple(
        f"{option} is not applied to models without such a part: {', '.join(keys)}"
        for option, keys in missing.items()
        if keys
    )


def row_config(row: Row, base: Config) -> Config:
    """Config of a row; `train.freeze` keeps only the parts that the row's model has."""
    return with_available_parts(override(base, row.settings))


def with_available_parts(config: Config) -> Config:
    """Restrict `train.freeze` to the encoders that the config's model has."""
    available = encoder_names(config)
    freeze = tuple(name for name in config.train.freeze if name.partition(":")[0] in available)
    return replace(config, train=replace(config.train, freeze=freeze))
