"""TorchScript export: what a trace stores beside the operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tmi.export.graphs.torchscript import write_torchscript
from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec


def convolution_flags(path) -> list[list[bool]]:
    """The flags of each convolution of a stored trace; the last one permits TF32."""
    graph = torch.jit.load(str(path)).inlined_graph
    return [
        [i.toIValue() for i in node.inputs() if i.type().str() == "bool"]
        for node in graph.findAllNodes("aten::_convolution")
    ]


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning")
@pytest.mark.parametrize("layer", [nn.Conv3d, nn.Conv1d])
def test_convolutions_of_a_trace_permit_no_tf32(tmp_path, layer):
    """A GPU may not compute a stored convolution in TF32, whatever torch's setting is at the export."""
    example = torch.rand(2, 1, *([5] * (3 if layer is nn.Conv3d else 1)))
    spec = GraphSpec(
        name="ct-0",
        role="ct",
        inputs=(TensorSpec(name="ct", dtype="float32", shape=("B", *example.shape[1:])),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("B", *example.shape[1:])),),
        artefacts={},
    )
    before = torch.backends.cudnn.allow_tf32
    write_torchscript(layer(1, 1, 3, padding=1).eval(), spec, (example,), tmp_path / "g.pt")
    flags = convolution_flags(tmp_path / "g.pt")
    assert flags
    assert [f[-1] for f in flags] == [False] * len(flags)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning")
@pytest.mark.parametrize("setting", ["cudnn", "algorithms"])
def test_settings_of_a_training_do_not_change_a_trace(tmp_path, setting):
    """A training in the same process sets how convolutions run; the stored ones have torch's defaults."""
    example = torch.rand(2, 1, 5)
    tensor = TensorSpec(name="ct", dtype="float32", shape=("B", 1, 5))
    spec = GraphSpec(name="ct-0", role="ct", inputs=(tensor,), outputs=(tensor,), artefacts={})
    module = nn.Conv1d(1, 1, 3, padding=1).eval()
    write_torchscript(module, spec, (example,), tmp_path / "g.pt")
    expected = (tmp_path / "g.pt").read_bytes()
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=setting == "cudnn"):
        torch.use_deterministic_algorithms(setting == "algorithms", warn_only=setting == "algorithms")
        write_torchscript(module, spec, (example,), tmp_path / "g.pt")
        left = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(False)
    assert (tmp_path / "g.pt").read_bytes() == expected
    assert left == (setting == "algorithms", setting == "algorithms")
