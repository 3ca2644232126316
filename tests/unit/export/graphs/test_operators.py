"""The operators of exported graphs are those that a prediction accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from tmi.export.graphs.onnx import write_onnx
from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.bundle.onnx_check import OPERATORS, require_exported_graph
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import Config
from tmi.toolkit.models.baselines.hfbsurv import HfbsurvFusion
from tmi.toolkit.models.baselines.mmd import MmdFusion
from tmi.toolkit.models.tmi_clnet.fusion import feature_widths


class Logits(nn.Module):
    """The logits of a fusion."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, ct: Tensor, text: Tensor, radiomics: Tensor) -> Tensor:
        """Logits [B,K]."""
        logits: Tensor = self.fusion(ct, text, radiomics).logits_BK
        return logits


def separate() -> Config:
    config = tiny()
    return replace(config, system=replace(config.system, hfbsurv=replace(config.system.hfbsurv, layers="separate")))


@pytest.mark.long
@pytest.mark.parametrize(
    ("fusion", "config"),
    [(HfbsurvFusion, tiny()), (HfbsurvFusion, separate()), (MmdFusion, tiny())],
    ids=["hfbsurv", "hfbsurv of earlier versions", "mmd"],
)
def test_operators_of_fusions_are_accepted(fusion, config, tmp_path):
    """The fusion of a baseline is written with accepted operators, and its file passes the check before an engine."""
    widths = feature_widths(config.network)
    sizes = {"ct_features": widths["image"], "text_features": widths["clinical"], "radiomics": 1781}
    spec = GraphSpec(
        name="fusion",
        role="fusion",
        inputs=tuple(TensorSpec(name=n, dtype="float32", shape=("B", size)) for n, size in sizes.items()),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("B", 2)),),
        artefacts={"onnx": "fusion.onnx"},
    )
    file = Path(tmp_path / "fusion.onnx")
    write_onnx(Logits(fusion(config)).eval(), spec, tuple(torch.randn(2, size) for size in sizes.values()), file)
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert sorted(operators - OPERATORS) == []
    require_exported_graph(file.read_bytes(), spec)
