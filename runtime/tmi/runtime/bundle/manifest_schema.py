"""Generate the manifest's JSON Schema from its dataclasses.

`python -m tmi.runtime.bundle.manifest_schema` rewrites the schema file in `data/`.

The dataclasses define the manifest. The schema file is for readers in other languages, and a test checks that both
agree. A change that could break a reader needs a new number in `SCHEMA`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tmi.runtime.bundle.manifest import SCHEMA, Manifest
from tmi.toolkit.storage.atomic_files import write_json

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
FIELD_CONSTRAINTS: dict[tuple[str, str], dict[str, Any]] = {
    ("Manifest", "schema"): {"const": SCHEMA},
    ("Manifest", "threshold"): {"minimum": 0, "maximum": 1},
    ("Manifest", "graphs"): {"minItems": 1},
    ("Manifest", "modalities"): {"minItems": 1, "uniqueItems": True},
    ("Manifest", "folds"): {"minItems": 1},
    ("Manifest", "classes"): {"minItems": 2},
    ("Manifest", "positive"): {"minimum": 0},
    ("FileSpec", "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    ("FileSpec", "bytes"): {"minimum": 0},
}
"""(class, field) -> further schema keywords, which a type cannot express."""


def schema_of_manifest() -> dict[str, Any]:
    """The JSON Schema that every manifest of this version satisfies."""
    kinds: dict[str, Any] = {}
    root = _object(Manifest, kinds)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **root, "$defs": kinds}


def _object(cls: type, kinds: dict[str, Any]) -> dict[str, Any]:
    hints, texts = get_type_hints(cls), _attribute_docs(cls)
    properties = {}
    for f in fields(cls):
        constraints = FIELD_CONSTRAINTS.get((cls.__name__, f.name), {})
        properties[f.name] = {"description": texts[f.name], **_type(hints[f.name], kinds), **constraints}
    return {
        "type": "object",
        "description": (inspect.getdoc(cls) or "").partition("\n\n")[0],
        "additionalProperties": False,
        "required": [f.name for f in fields(cls) if _required(cls, f)],
        "properties": properties,
    }


def _required(cls: type, field: Field[Any]) -> bool:
    """Whether a field is required: it has no default, or it is the manifest's schema id, which readers need first."""
    bare = field.default is MISSING and field.default_factory is MISSING
    return bare or (cls is Manifest and field.name == "schema")


def _type(hint: Any, kinds: dict[str, Any]) -> dict[str, Any]:
    origin, items = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        name = hint.__name__
        if name not in kinds:
            kinds[name] = {}  # reserves its position before the classes it refers to
            kinds[name] = _object(hint, kinds)
        return {"$ref": f"#/$defs/{name}"}
    if origin is Literal:
        return {"enum": list(items)}
    if origin in (Union, types.UnionType):
        options = [_type(item, kinds) for item in items]
        simple = all(option.keys() == {"type"} for option in options)
        return {"type": [option["type"] for option in options]} if simple else {"anyOf": options}
    if origin is tuple and len(items) == 2 and items[1] is Ellipsis:
        return {"type": "array", "items": _type(items[0], kinds)}
    if origin is tuple:
        return {
            "type": "array",
            "prefixItems": [_type(item, kinds) for item in items],
            "minItems": len(items),
            "maxItems": len(items),
        }
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(items[1], kinds)}
    return {"type": JSON_TYPES[hint]}


def _attribute_docs(cls: type) -> dict[str, str]:
    """Field name -> the docstring below the field in the class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            texts[statement.target.id] = inspect.cleandoc(str(following.value.value))
    return texts


if __name__ == "__main__":
    write_json(Path(__file__).parent / "data" / f"{SCHEMA.replace('/', '-')}.schema.json", schema_of_manifest())
