"""An export's need of memory is compared with the machine's before a network runs."""

from __future__ import annotations

import re

import pytest

from factories.nano import nano
from factories.tmi_command import tmi
from tmi.export.bundle.memory_fit import export_bytes, require_export_memory
from tmi.export.graphs.partition import DistinctEncoder, GraphPartition
from tmi.runtime.verification.verify import verify_bundle
from tmi.toolkit.compute import memory
from tmi.toolkit.compute.memory import AvailableMemory
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.errors import UnavailableError

GIB = 2**30


def partition(folds: int, *, shared: bool = False) -> GraphPartition:
    groups = [tuple(range(folds))] if shared else [(fold,) for fold in range(folds)]
    encoders = tuple(
        DistinctEncoder(name=f"{role}-{i}", role=role, folds=group, tokenizer=None)
        for role in ("ct", "text")
        for i, group in enumerate(groups)
    )
    return GraphPartition(encoders=encoders, folds=tuple(range(folds)))


@pytest.fixture
def limit(monkeypatch):
    """Function that sets the bytes that this process can use."""

    def set_limit(size: int) -> None:
        there = AvailableMemory(size=size - memory._own_memory(), source="limit of the control group")
        monkeypatch.setattr(memory, "available_memory", lambda: there)

    return set_limit


@pytest.mark.parametrize(
    ("config", "folds", "measured"),
    [(nano(), 1, 0.80), (tiny(), 1, 0.84), (paper(), 1, 6.62), (paper(), 2, 9.4)],
    ids=["nano", "tiny", "paper", "paper-2-folds"],
)
def test_estimate_is_near_the_measured_peak(config, folds, measured):
    """The estimate is within 30 % of peaks that were measured, in GiB, and at most 15 % below."""
    estimate = export_bytes(config, partition(folds), simulated=False) / GIB
    assert 0.85 * measured < estimate < 1.3 * measured


def test_shared_encoders_count_once():
    """Folds with one encoder need less than folds with encoders of their own."""
    own, shared = (export_bytes(paper(), partition(5, shared=s), simulated=False) for s in (False, True))
    assert own - shared > 4 * GIB


def test_simulated_engine_can_be_added_elsewhere(limit):
    """Where only the simulation of a TensorRT engine does not fit, the fix names the export that does."""
    limit(int(7.5 * GIB))
    require_export_memory(paper(), partition(1), simulated=False)
    with pytest.raises(UnavailableError, match=r"the export needs about 8\.\d GiB of memory, and 7\.5 GiB") as stop:
        require_export_memory(paper(), partition(1), simulated=True)
    assert re.match(r"export --engine onnx here \(6\.\d GiB\) and add", stop.value.fix)


@pytest.mark.parametrize(("gib", "adding"), [(2.4, False), (7.5, True)], ids=["does-not-fit", "adds-already"])
def test_export_that_does_not_help_is_not_proposed(limit, gib, adding):
    """The fix names no export that does not fit either, nor one that replaces an addition."""
    limit(int(gib * GIB))
    with pytest.raises(UnavailableError, match="the export needs about") as stop:
        require_export_memory(paper(), partition(1), simulated=True, adding=adding)
    assert stop.value.fix.startswith("close other programs, or export on a machine with more memory; ")


def test_export_that_does_not_fit_ends_before_the_network_runs(nano_run, tmp_path, limit):
    """Exit code 5 with need, available memory and the option that omits the check; nothing is written."""
    limit(GIB // 2)
    outcome = tmi("export", nano_run, "--out", tmp_path / "bundle")
    assert outcome.code == 5
    assert re.search(
        r"error: the export needs about 0\.8 GiB of memory, and 0\.5 GiB is available \(limit of", outcome.err
    )
    assert "--no-memory-check" in outcome.err
    assert "running the eager model" not in outcome.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.long
def test_check_can_be_omitted(nano_run, tmp_path, limit):
    """With `--no-memory-check` the export runs as it is."""
    limit(GIB // 2)
    outcome = tmi("export", nano_run, "--out", tmp_path / "bundle", "--engine", "torchscript", "--no-memory-check")
    assert outcome.code == 0, outcome.err
    assert verify_bundle(tmp_path / "bundle", engines=("torchscript",)).passed
