"""Manifests of earlier schemas in the form of the current one.

`tmi-bundle/1` has no `modalities`: its bundles use all. `tmi-bundle/1` and `/2` have a bag `extra` and free objects
`run` and `golden`; `/3` has typed entries, and other names for some::

    parity[].gate                     parity[].check
    extra.engines_not_judged          engines_not_validated
    extra.engines_refused             engines_rejected
    extra.hardware, .temperatures     hardware, temperatures
    extra.tensorrt, .additions        tensorrt, additions
    ...tensorrt.judged_on             ...validated_on
    ...tensorrt.precision.asked       ...requested
    ...plans.*.graphs.*.from          ...source
    ...features."timing cache"        ...timing_cache, and so on
    run.cohort.refused                run.cohort.rejected
    run.summary.refused_cases         run.summary.rejected_cases

Entries of the former free objects that the current schema does not have are left out. Values are not checked here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin

from tmi.runtime.bundle.manifest_records import Addition, GoldenRecord, Hardware, RunRecord
from tmi.runtime.bundle.tensorrt_records import TensorRtRecord
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.serialization import type_hints

Document = Mapping[str, Any]
ALL_MODALITIES = "tmi-bundle/1"
"""Schema without `modalities`."""
UNTYPED = (ALL_MODALITIES, "tmi-bundle/2")
"""Schemas with free objects."""
EXTRA_NAMES = {"engines_not_judged": "engines_not_validated", "engines_refused": "engines_rejected"}


LATER_ENTRIES = frozenset(
    {"hardware", "temperatures", "engines_not_validated", "engines_rejected", "tensorrt", "additions"}
)
"""Entries that earlier schemas have inside `extra`."""


def upgraded(document: Document, schema: str) -> Document:
    """A manifest of an earlier schema as one of the schema `schema`; any other document as it is.

    Raises:
        UsageError: it has entries of a later schema, or its `extra` is not an object.
    """
    stated = document.get("schema")
    if stated not in UNTYPED or (stated == ALL_MODALITIES and "modalities" in document):
        return document
    entries = {name: value for name, value in document.items() if name != "extra"}
    if later := sorted(entries.keys() & LATER_ENTRIES):
        raise UsageError(f"manifest: unknown key {later[0]!r} in schema {stated!r}", fix="export the bundle again")
    if stated == ALL_MODALITIES:
        entries["modalities"] = list(MODALITIES)
    extra = _renamed(document.get("extra", {}), EXTRA_NAMES)
    if not isinstance(extra, Mapping):
        raise UsageError("manifest.extra is not an object", fix="export the bundle again")
    known = {
        "hardware": known_entries(Hardware, extra.get("hardware")),
        "temperatures": extra.get("temperatures"),
        "additions": known_entries(tuple[Addition, ...], extra.get("additions")),
        "engines_not_validated": extra.get("engines_not_validated"),
        "engines_rejected": extra.get("engines_rejected"),
        "tensorrt": known_entries(TensorRtRecord, _tensorrt(extra.get("tensorrt"))),
    }
    entries |= {name: value for name, value in known.items() if value is not None}
    run = document.get("run")
    if isinstance(run, Mapping):  # some had no name: the preset's stands for it
        run = with_current_names(run)
        run["name"] = run.get("name") or document.get("preset")
    entries["run"] = known_entries(RunRecord, run)
    entries["golden"] = known_entries(GoldenRecord, document.get("golden"))
    if isinstance(parity := document.get("parity"), list):
        entries["parity"] = [_renamed(record, {"gate": "check"}) for record in parity]
    return {**entries, "schema": schema}


def known_entries(hint: Any, value: Any) -> Any:
    """A JSON value without the keys, at any depth, that its dataclass does not have."""
    origin, items = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return known_entries(next((item for item in items if item is not type(None)), None), value)
    if origin is tuple and isinstance(value, list) and items[-1] is Ellipsis:
        return [known_entries(items[0], entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    if origin is not None and issubclass(origin, Mapping):
        return {key: known_entries(items[1], entry) for key, entry in value.items()}
    if not (isinstance(hint, type) and is_dataclass(hint)):
        return value
    hints = type_hints(hint)
    return {key: known_entries(hints[key], entry) for key, entry in value.items() if key in hints}


def with_current_names(run: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run, as run.json and summary.json have it, with the names of the manifest."""
    run = _changed(run, "cohort", lambda cohort: _renamed(cohort, {"refused": "rejected"}))
    return dict(_changed(run, "summary", lambda summary: _renamed(summary, {"refused_cases": "rejected_cases"})))


def _tensorrt(record: Any) -> Any:
    record = _renamed(record, {"judged_on": "validated_on"})
    record = _changed(record, "precision", lambda precision: _renamed(precision, {"asked": "requested"}))
    return _changed(record, "plans", lambda plans: _each(plans, _plans))


def _plans(plans: Any) -> Any:
    return _changed(plans, "graphs", lambda graphs: _each(graphs, _plan))


def _plan(plan: Any) -> Any:
    plan = _renamed(plan, {"from": "source"})
    return _changed(plan, "features", lambda features: _spelled(features))


def _spelled(features: Any) -> Any:
    """Features whose names are identifiers: they had blanks."""
    return (
        {key.replace(" ", "_"): value for key, value in features.items()} if isinstance(features, Mapping) else features
    )


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): entry for key, entry in value.items()} if isinstance(value, Mapping) else value


def _changed(value: Any, key: str, change: Callable[[Any], Any]) -> Any:
    """An object with one entry changed, if it has it."""
    return {**value, key: change(value[key])} if isinstance(value, Mapping) and key in value else value


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return {key: change(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value
