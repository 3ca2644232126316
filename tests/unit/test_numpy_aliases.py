"""numpy's `NDArray` is no class since numpy 2.5: jaxtyping rejects it where an annotation is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories.paths import ROOT

PACKAGES = ("toolkit", "runtime", "training", "export")


def evaluated_shapes(node: ast.AST) -> Iterator[ast.Subscript]:
    """Shape annotations of an `NDArray` that importing the module evaluates."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue  # a string, because of `from __future__ import annotations`
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Subscript) and isinstance(child.slice, ast.Tuple):
                parts = child.slice.elts
                named = any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts)
                if named and "NDArray" in ast.dump(parts[0]):
                    yield child
            yield from evaluated_shapes(child)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_evaluates_a_shape_of_ndarray(package):
    """Importing a module evaluates no jaxtyping annotation of an `NDArray`."""
    found = [
        f"{path.relative_to(ROOT)}:{shape.lineno}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for shape in evaluated_shapes(ast.parse(Path(path).read_text(encoding="utf-8")))
    ]
    assert found == []


def test_evaluated_shape_is_found():
    """A type alias is found; annotations and aliases for the type checker are not."""
    source = (
        "from __future__ import annotations\n"
        "def f(x: Float32[NDArray[np.float32], 'B C']) -> None: ...\n"
        "if TYPE_CHECKING:\n"
        "    Hidden = Float32[NDArray[np.float32], 'B C']\n"
        "Features = Mapping[str, Float32[NDArray[np.float32], 'B C']]\n"
    )
    assert [shape.lineno for shape in evaluated_shapes(ast.parse(source))] == [5]
