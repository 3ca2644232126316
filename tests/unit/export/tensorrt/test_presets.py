"""`tmi export --engine trt-rtx` of preset `tiny` on a machine without a GPU.

`benchmarks/paper_size_fp16.py` runs the same command at full size, in a quarter of an hour.
"""

from __future__ import annotations

import pytest

from factories.random_run import write_random_run
from factories.tmi_command import tmi
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.toolkit.config.presets import tiny

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this platform")


@pytest.mark.slow
@pytest.mark.skipif(
    find_gpu() is not None, reason="tests the export on a machine without a GPU; tests/gpu tests the other"
)
def test_tiny_preset_becomes_fp16_plans_for_sm80(tmp_path):
    """Preset `tiny` is exported as FP16 plans for SM80, and `tmi inspect` shows their layer types."""
    run, folder = write_random_run(tmp_path / "run", tiny(), folds=2, shared_text=True), tmp_path / "bundle"
    outcome = tmi("export", run, "--engine", "trt-rtx", "--precision", "fp16", "--target", "sm80", "--out", folder)
    assert outcome.code == 0, outcome.err
    assert "trt-rtx      4 plans for sm80 by tensorrt_rtx" in outcome.out
    manifest = open_bundle(folder).manifest
    assert manifest.preset == "tiny"
    assert manifest.tensorrt is not None
    plans = manifest.tensorrt.plans["trt-rtx"].graphs
    assert set(plans) == {"ct-0", "ct-1", "text-0", "fusion"}
    for name, plan in plans.items():
        assert (plan.layers_in_half or 0) > (plan.layers_in_float or 0) > 0, name
        assert sum(len(node.layers) for node in plan.float_nodes.values()) >= (plan.layers_in_float or 0)
        assert all(node.why for node in plan.float_nodes.values())
    errors = {r.check: r for r in manifest.parity if r.engine == "fp16-emulation"}
    assert 1e-5 < errors["logits"].measured < errors["logits"].bound == 2.0**-6
    assert errors["float64"].multiple > 1, "the error is also stated as a multiple of float32's own"
    shown = tmi("inspect", folder).out
    for name, plan in plans.items():
        row = next(line for line in shown.splitlines() if line.startswith(f"│ trt-rtx │ {name} "))
        assert [cell.strip() for cell in row.split("│")[5:7]] == [
            str(plan.layers_in_half),
            str(plan.layers_in_float),
        ]
