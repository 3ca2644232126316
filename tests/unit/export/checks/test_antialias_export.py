"""A bundle with `ct.antialias`: its golden case is averaged by other means; a runtime that interpolates is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from factories.random_run import write_random_run
from tmi.export.bundle.network_stages import GOLDEN_SEED
from tmi.export.bundle.writer import export_run
from tmi.export.checks.preprocessing_reference import golden_case_reference
from tmi.export.graphs.partition import partition_run
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.verification.golden_case import golden_config, write_golden_case
from tmi.runtime.verification.parity import BOUNDS
from tmi.toolkit.imaging import ct_resampling
from tmi.toolkit.imaging.ct_resampling import prepare_ct
from tmi.toolkit.imaging.volume import read_ct
from tmi.toolkit.run_folder import RunFolder


@pytest.fixture(scope="module")
def averaging_run(tmp_path_factory, nano_config):
    """A finished run of random weights whose CTs are averaged."""
    config = replace(nano_config, ct=replace(nano_config.ct, antialias=True))
    return write_random_run(tmp_path_factory.mktemp("averaging") / "run", config, folds=2, seed=5)


def test_reference_by_the_integral_equals_the_runtimes_average(averaging_run, tmp_path):
    """The runtime averages the golden case as its reference does; interpolated, it differs by a fifth of the scale."""
    run = RunFolder.open(averaging_run)
    expected = golden_case_reference(run, partition_run(run), tmp_path / "golden", seed=GOLDEN_SEED)["ct"]
    ct = read_ct(write_golden_case(tmp_path / "again", run.schema, seed=GOLDEN_SEED))
    config = golden_config(run.config).ct
    bound = BOUNDS["float32"].relative
    assert np.abs(prepare_ct(ct, config) - expected).max() < bound
    assert np.abs(prepare_ct(ct, replace(config, antialias=False)) - expected).max() > 0.2


@pytest.mark.long
def test_runtime_that_ignores_antialias_is_not_exported(averaging_run, tmp_path, monkeypatch):
    """If preprocessing interpolates although the config averages, the export fails on the CT of the golden case."""
    original = ct_resampling._ResamplePlan.__init__

    def ignoring(self, source, out, config):
        original(self, source, out, replace(config, antialias=False))

    monkeypatch.setattr(ct_resampling._ResamplePlan, "__init__", ignoring)
    with pytest.raises(ParityError) as failed:
        export_run(averaging_run, tmp_path / "bundle", artefacts=("torchscript",), weights=False)
    assert any("ct, relative to its scaled range" in r.detail for r in failed.value.records if not r.passed)
    assert not (tmp_path / "bundle").exists()
