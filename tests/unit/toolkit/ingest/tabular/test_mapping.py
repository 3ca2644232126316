"""Mapping files: strict validation of everything that a lenient parser would accept with a wrong result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.tabular.mapping import read_mapping

EXAMPLES = ROOT / "docs" / "examples"
HEAD = "schema: tmi-mapping/1\ncase_id: {column: id}\n"
SEX = "sex: {column: sex, values: {f: female}}"
FIELDS = f"fields:\n  {SEX}\n"


def write(folder: Path, text: str, name: str = "m.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_documented_examples_are_valid(path):
    """Every example of docs/examples is a valid mapping."""
    mapping, schema = read_mapping(path)
    assert mapping.fields
    assert set(mapping.fields) <= set(schema.by_name)


def test_yaml_and_json_are_equivalent(tmp_path):
    """A mapping in JSON equals the same mapping in YAML."""
    import yaml

    text = (EXAMPLES / "mayo-pbc-mapping.yaml").read_text()
    twin = write(tmp_path, json.dumps(yaml.safe_load(text)), "m.json")
    assert read_mapping(twin) == read_mapping(EXAMPLES / "mayo-pbc-mapping.yaml")


MISTAKES = {
    "another form": ("schema: tmi-mapping/2\ncase_id: {column: id}\n" + FIELDS, "schema 'tmi-mapping/2'"),
    "an unknown key": (HEAD + FIELDS + "colour: red\n", "unknown key 'colour'"),
    "an unknown key within": (HEAD + FIELDS + "table: {decimals: ','}\n", "table: unknown key 'decimals'"),
    "no field": (HEAD + "fields: {}\n", "maps no field"),
    "an unknown field": (HEAD + "fields: {sgot: {column: s, unit: U/L}}\n", "has no field 'sgot'"),
    "an unknown unit": (HEAD + "fields: {albumin: {column: a, unit: mg/L}}\n", "does not accept the unit 'mg/L'"),
    "no unit": (HEAD + "fields: {albumin: {column: a}}\n", "fields.albumin: the unit is missing"),
    "a unit of a word": (HEAD + "fields: {sex: {column: s, unit: m}}\n", "a choice has no unit"),
    "an unknown choice": (HEAD + "fields: {sex: {column: s, values: {f: woman}}}\n", "'woman' is not one of"),
    "an unknown fixed choice": (HEAD + "fields: {sex: {fixed: diverse}}\n", "'diverse' is not one of its choices"),
    "a word for a number": (
        HEAD + "fields: {albumin: {column: a, unit: g/L, values: {low: 'few'}}}\n", "a value is not a number"
    ),
    "column and fixed": (HEAD + "fields: {sex: {column: s, fixed: male}}\n", "both or neither of column and fixed"),
    "a field of nothing": (HEAD + "fields: {sex: {}}\n", "both or neither of column and fixed"),
    "fixed with a map": (HEAD + "fields: {sex: {fixed: male, values: {m: male}}}\n", "a fixed value has values"),
    "an unknown label": (
        HEAD + FIELDS + "label: {column: o, values: {d: dead}}\n", "'dead' is not 'good' or 'bad'"
    ),
    "a label without values": (HEAD + FIELDS + "label: {column: o}\n", "both or neither of a column with values"),
    "a rule without conditions": (HEAD + FIELDS + "label: {rules: [{label: bad, when: []}]}\n", "needs conditions"),
    "a condition without a test": (
        HEAD + FIELDS + "label: {rules: [{label: bad, when: [{column: o}]}]}\n", "has no test"
    ),
    "a rule with both outcomes": (
        HEAD + FIELDS + "label: {rules: [{label: bad, exclude: x, when: [{column: o, above: 1}]}]}\n",
        "either label or exclude",
    ),
    "two ways to name the liver": (HEAD + FIELDS + "images: {ct: c, mask_label: 5, roi: liver}\n", "both mask_label"),
    "a key twice": (HEAD + FIELDS + "fields: {}\n", "the key 'fields' is duplicated"),
    "a field twice": (HEAD + f"fields:\n  {SEX}\n  {SEX}\n", "the key 'sex' is duplicated"),
    "an alias": (HEAD + "fields: {sex: &a {column: s}, age: *a}\n", "it uses an alias"),
    "a tag": (HEAD + "fields: !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
    "no YAML": ("{[", "cannot be read as YAML or JSON: it is not YAML (line 1)"),
    "a list": ("- 1\n", "it is not a mapping of keys to values"),
    "nothing": ("", "it is not a mapping of keys to values"),
    "deep nesting": ("[" * 20000, "cannot be read as YAML"),
    "a missing schema file": (HEAD + "clinical_schema: none.json\n" + FIELDS, "none.json cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_reported_with_its_location(tmp_path, mistake):
    """Each mistake is a usage error that names the key."""
    text, message = MISTAKES[mistake]
    with pytest.raises(UsageError) as error:
        read_mapping(write(tmp_path, text))
    assert message in str(error.value)
    assert error.value.fix


def test_missing_file_and_duplicate_json_key(tmp_path):
    """A missing file and a duplicate JSON key are usage errors."""
    with pytest.raises(UsageError, match="does not exist"):
        read_mapping(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="the key 'schema' is duplicated"):
        read_mapping(write(tmp_path, '{"schema": "tmi-mapping/1", "schema": "tmi-mapping/1"}', "m.json"))


def test_dimensionless_field_needs_no_unit(tmp_path):
    """A field without a unit in the schema needs none in the mapping."""
    schema = {
        "schema": "tmi-clinical-schema/1", "extends": "liver", "name": "x", "version": "1",
        "fields": [{"name": "inr", "label": "INR", "section": "blood", "unit": "", "plausible": [0.5, 15]}],
    }  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(schema))
    mapping, _ = read_mapping(write(tmp_path, HEAD + "clinical_schema: s.json\nfields: {inr: {column: inr}}\n"))
    assert mapping.fields["inr"].unit is None
