"""ONNX export of one graph to one file (opset 20), with every parameter under its own name.

`torch.onnx.export` runs with its optimiser off; only shape arithmetic is folded. The optimiser merges batch norms into
convolutions, transposes weights and drops parameter names, so the weights in the file could no longer be compared with
the model's. Engines apply the same optimisations when they load the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.toolkit.compute.silence import Ignored, quiet

OPSET = 20
"""Opset of every graph. The file's IR version is 9."""
FOLD_LIMIT = 4096
"""Maximum number of elements of a constant expression that is folded. Expressions with a parameter are not folded."""


def write_onnx(module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
    """Export a module, fold its shape arithmetic, write the file and validate it.

    Args:
        module: module in evaluation mode.
        spec: names and dynamic axes of the graph's tensors.
        example: small inputs that match `spec`.
        path: output file. The weights are stored inside it.

    Raises:
        RuntimeError: the module cannot be exported with these dynamic axes (torch's own message), or the file is not
            valid ONNX.
    """
    axes = {a: torch.export.Dim(a, min=1) for t in spec.inputs for a in t.shape if isinstance(a, str)}
    dynamic = tuple({i: axes[a] for i, a in enumerate(t.shape) if isinstance(a, str)} for t in spec.inputs)
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            dynamic_shapes=dynamic,
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            verbose=False,
        )
    assert program is not None
    _fold_shape_arithmetic(program.model)
    _drop_stack_traces(program.model)
    program.save(path, external_data=False)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"the ONNX file is not valid: {error}") from error


def _fold_shape_arithmetic(model: ir.Model) -> None:
    """Fold constant expressions without parameters, then remove what became unused."""
    # Before inlining and folding, the initializers are exactly the module's parameters and buffers.
    parameters = frozenset(model.graph.initializers)

    def has_no_parameter(node: ir.Node) -> bool | None:
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    passes.InlinePass()(model)
    fold_constants_ir(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=has_no_parameter)
    _drop_zero_biases(model, parameters)
    for cleanup in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.OutputFixPass(),
        passes.TopologicalSortPass(),
    ):
        cleanup(model)


def _drop_zero_biases(model: ir.Model, parameters: frozenset[str]) -> None:
    """Remove the zero biases of bias-free convolutions: torch exports them as [channels, 2], which ONNX forbids."""
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3:
            bias = node.inputs[2]
            if bias is not None and bias.name not in parameters and bias.const_value is not None:
                assert not bias.const_value.numpy().any(), f"bias {bias.name} is neither zero nor a parameter"
                node.resize_inputs(2)


def _drop_stack_traces(model: ir.Model) -> None:
    """Remove the stack traces that the exporter stores at every node, because they contain local paths."""
    for node in model.graph:
        for key in [k for k in node.metadata_props if k.startswith(("pkg.torch", "namespace"))]:
            del node.metadata_props[key]
    for value in [*model.graph.inputs, *model.graph.outputs, *(v for n in model.graph for v in n.outputs)]:
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's notes about torchvision, axis names shared by several inputs, and its own pytree API."""
    with quiet(
        [
            Ignored("# The axis name: . will not be used", UserWarning),
            Ignored(r".*isinstance\(treespec, LeafSpec\)", FutureWarning),
        ],
        loggers=["torch.onnx._internal.exporter._registration"],
        level=logging.ERROR,
    ):
        yield
