"""A mapping is data, and is refused for whatever a lenient reader would take and get wrong."""

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
def test_every_example_is_a_mapping(path):
    mapping, schema = read_mapping(path)
    assert mapping.fields
    assert set(mapping.fields) <= set(schema.by_name)


def test_yaml_and_json_give_the_same_mapping(tmp_path):
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
    "no unit": (HEAD + "fields: {albumin: {column: a}}\n", "fields.albumin: the unit is not named"),
    "a unit of a word": (HEAD + "fields: {sex: {column: s, unit: m}}\n", "a word has no unit"),
    "an unknown choice": (HEAD + "fields: {sex: {column: s, values: {f: woman}}}\n", "'woman' is none of its choices"),
    "an unknown fixed choice": (HEAD + "fields: {sex: {fixed: diverse}}\n", "'diverse' is none of its choices"),
    "a word for a number": (
        HEAD + "fields: {albumin: {column: a, unit: g/L, values: {low: 'few'}}}\n", "a value is no number"
    ),
    "column and fixed": (HEAD + "fields: {sex: {column: s, fixed: male}}\n", "both or none of column and fixed"),
    "a field of nothing": (HEAD + "fields: {sex: {}}\n", "both or none of column and fixed"),
    "fixed with a map": (HEAD + "fields: {sex: {fixed: male, values: {m: male}}}\n", "a fixed value has values"),
    "an unknown label": (
        HEAD + FIELDS + "label: {column: o, values: {d: dead}}\n", "'dead' is not 'good' or 'bad'"
    ),
    "a label without values": (HEAD + FIELDS + "label: {column: o}\n", "both or none of a column with values"),
    "a rule without conditions": (HEAD + FIELDS + "label: {rules: [{label: bad, when: []}]}\n", "needs conditions"),
    "a condition without a test": (
        HEAD + FIELDS + "label: {rules: [{label: bad, when: [{column: o}]}]}\n", "tests nothing"
    ),
    "a rule with both outcomes": (
        HEAD + FIELDS + "label: {rules: [{label: bad, exclude: x, when: [{column: o, above: 1}]}]}\n",
        "either label or exclude",
    ),
    "two ways to name the liver": (HEAD + FIELDS + "images: {ct: c, mask_label: 5, roi: liver}\n", "both mask_label"),
    "a key twice": (HEAD + FIELDS + "fields: {}\n", "the key 'fields' is there twice"),
    "a field twice": (HEAD + f"fields:\n  {SEX}\n  {SEX}\n", "the key 'sex' is there twice"),
    "a key that YAML takes for no": (
        HEAD + "fields: {sex: {column: s, values: {no: male}}}\n", "'False' is no text; put it into quotes"
    ),
    "an alias": (HEAD + "fields: {sex: &a {column: s}, age: *a}\n", "it uses an alias"),
    "a tag": (HEAD + "fields: !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
    "no YAML": ("{[", "cannot be read as YAML or JSON: line 1"),
    "a list": ("- 1\n", "it is no mapping of keys to values"),
    "nothing": ("", "it is no mapping of keys to values"),
    "deep nesting": ("[" * 20000, "cannot be read as YAML"),
    "a schema that is not there": (HEAD + "clinical_schema: none.json\n" + FIELDS, "none.json cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place(tmp_path, mistake):
    text, told = MISTAKES[mistake]
    with pytest.raises(UsageError) as error:
        read_mapping(write(tmp_path, text))
    assert told in str(error.value)
    assert error.value.fix


def test_a_mapping_that_is_not_there_or_doubles_a_key_in_json_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not there"):
        read_mapping(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="the key 'schema' is there twice"):
        read_mapping(write(tmp_path, '{"schema": "tmi-mapping/1", "schema": "tmi-mapping/1"}', "m.json"))


def test_a_number_without_unit_in_the_schema_needs_none(tmp_path):
    schema = {
        "schema": "tmi-clinical-schema/1", "extends": "liver", "name": "x", "version": "1",
        "fields": [{"name": "inr", "label": "INR", "section": "blood", "unit": "", "plausible": [0.5, 15]}],
    }  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(schema))
    mapping, _ = read_mapping(write(tmp_path, HEAD + "clinical_schema: s.json\nfields: {inr: {column: inr}}\n"))
    assert mapping.fields["inr"].unit is None
