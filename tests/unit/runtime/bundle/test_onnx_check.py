"""The check of an ONNX file before an engine parses it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from factories.paths import ROOT
from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.onnx_check import GraphRejectedError, require_exported_graph
from tmi.runtime.bundle.protobuf import ProtobufError, fields
from tmi.runtime.bundle.reader import Bundle, inspect_bundle

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return inspect_bundle(PUBLISHED)


def graph_of(bundle: Bundle, name: str) -> tuple[bytes, GraphSpec]:
    return (PUBLISHED / "graphs" / f"{name}.onnx").read_bytes(), bundle.manifest.graph(name)


@pytest.mark.parametrize("name", ["ct-0", "text-0", "fusion"])
def test_exported_graphs_pass(bundle, name):
    """The graphs of a published bundle pass."""
    require_exported_graph(*graph_of(bundle, name))


def test_every_exported_graph_passes(nano_bundle):
    """The graphs of a bundle exported now pass, by the specs of its manifest."""
    manifest = inspect_bundle(nano_bundle).manifest
    for graph in manifest.graphs:
        require_exported_graph((nano_bundle / graph.artefacts["onnx"]).read_bytes(), graph)


def first(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == operator)


def subgraph(model: onnx.ModelProto) -> None:
    first(model, "Conv").attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))


def external_file(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def huge_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**40], np.int64), "huge"))


CHANGES: dict[str, tuple[Change, str]] = {
    "another operator": (lambda m: setattr(first(m, "Conv"), "op_type", "Loop"), "operator :Loop"),
    "operator of another domain": (lambda m: setattr(first(m, "Conv"), "domain", "com.evil"), "operator com.evil:Conv"),
    "random operator": (lambda m: setattr(first(m, "Relu"), "op_type", "RandomNormalLike"), "RandomNormalLike"),
    "subgraph": (subgraph, "holds a graph"),
    "function": (lambda m: m.functions.append(helper.make_function("d", "f", [], [], [], [])), "functions"),
    "other operator set": (lambda m: setattr(m.opset_import[0], "version", 99), "operator set '' 99"),
    "external file": (external_file, "stored in another file"),
    "shape larger than the bytes": (lambda m: m.graph.initializer[0].dims.append(10**9), "its shape needs"),
    "negative shape": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "impossible shape"),
    "text tensor": (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING), "data type 8"),
    "absurd shape constant": (huge_shape, "1099511627776 is too large"),
    "absurd stride": (
        lambda m: next(a for a in first(m, "Conv").attribute if a.name == "strides").ints.__setitem__(0, 2**40),
        "is too large",
    ),
    "cycle": (lambda m: first(m, "Relu").input.__setitem__(0, m.graph.output[0].name), "not computed before it"),
    "output computed twice": (lambda m: m.graph.node.append(m.graph.node[-1]), "one that exists"),
    "input of other size": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 10**9),
        "not those of the manifest",
    ),
    "one more output": (lambda m: m.graph.output.append(m.graph.output[0]), "not those of the manifest"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_graph_that_no_export_writes_is_rejected(bundle, name):
    """Every change is rejected by name; nothing is loaded."""
    data, spec = graph_of(bundle, "ct-0")
    model = onnx.load_from_string(data)
    change, message = CHANGES[name]
    change(model)
    with pytest.raises(GraphRejectedError, match=message):
        require_exported_graph(model.SerializeToString(), spec)


def test_graphs_exchanged_under_fresh_digests_are_rejected(bundle):
    """The file of another graph does not have this one's inputs."""
    with pytest.raises(GraphRejectedError, match="not those of the manifest"):
        require_exported_graph(graph_of(bundle, "text-0")[0], bundle.manifest.graph("ct-0"))


@pytest.mark.parametrize("name", ["ct-0", "text-0", "fusion"])
def test_mutated_bytes_never_crash_the_check(bundle, name):
    """Of changed, cut and joined bytes the check either accepts or raises its own error."""
    data, spec = graph_of(bundle, name)
    numbers = random.Random(name)
    for _ in range(150):
        mutant = bytearray(data)
        for _ in range(numbers.choice([1, 2, 8])):
            mutant[numbers.randrange(len(mutant))] = numbers.randrange(256)
        cut = bytes(mutant[: numbers.randrange(len(mutant))]) if numbers.random() < 0.3 else bytes(mutant)
        try:
            require_exported_graph(cut, spec)
        except GraphRejectedError:
            continue


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x0a\x05ab", "longer than its message"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "number 0"),
        (b"\x80", "does not end"),
    ],
)
def test_malformed_message_is_named(data, message):
    """Each malformed message is rejected; none is read beyond its end."""
    with pytest.raises(ProtobufError, match=message):
        list(fields(memoryview(data)))


def test_check_needs_no_onnx_package(bundle, tmp_path):
    """A serving machine has no package `onnx`: neither the check nor what it imports needs it."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['onnx'] = None; sys.modules['torch'] = None\n"
        "from pathlib import Path; from tmi.runtime.bundle.reader import inspect_bundle\n"
        "from tmi.runtime.bundle.onnx_check import require_exported_graph as check\n"
        "folder = Path(sys.argv[1]); spec = inspect_bundle(folder).manifest.graph('ct-0')\n"
        "check((folder / 'graphs/ct-0.onnx').read_bytes(), spec)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(PUBLISHED))], check=True, cwd=tmp_path)
