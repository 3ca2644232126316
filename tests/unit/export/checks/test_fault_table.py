"""The table of planted faults: each is blocked with its exit code and reason, and no valid model is rejected."""

from __future__ import annotations

import pytest

from factories.paths import ROOT
from factories.planted_faults import Fault, Workbench, all_faults, reason_of
from factories.random_run import write_random_run
from factories.tmi_command import tmi
from factories.valid_models import QUICK, VALID_MODELS, ValidModel

FAULTS = all_faults()


def marked(fault: Fault) -> object:
    if not fault.quick:
        marks = pytest.mark.slow
    elif fault.where in ("export", "runtime"):  # an export or a process for each
        marks = pytest.mark.long
    else:
        marks = ()
    return pytest.param(fault, id=fault.name, marks=marks)


def test_fault_table_is_complete_and_unique():
    """The table has faults of every stage and exit code, ten rebuilds, and unique names."""
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 20
    assert {f.code for f in FAULTS if f.where != "privacy"} == {4, 6}
    assert {f.where for f in FAULTS} == {
        "export", "file", "resealed", "signature", "forged", "exchanged", "privacy", "runtime",
    }  # fmt: skip
    assert len({r.name for r in VALID_MODELS}) == len(VALID_MODELS) == 10


def test_documentation_lists_every_fault():
    """docs/parity.md has the name of each fault, and their number."""
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    assert [f.name for f in FAULTS if f.name not in page] == []
    assert f"All {len(FAULTS)} are blocked" in page


@pytest.mark.parametrize("fault", [marked(f) for f in FAULTS])
def test_planted_fault_is_blocked_for_its_reason(fault: Fault, workbench: Workbench, monkeypatch):
    """Each planted fault ends with its exit code, its reason and a fix, without a prediction or the planted text."""
    outcome = fault.plant(workbench, monkeypatch)
    assert outcome.code == fault.code, outcome.err
    assert fault.blocked(outcome), f"{fault.reason!r} is not in {reason_of(outcome)!r}"
    if fault.code:
        assert "\n  fix: " in outcome.err
        assert outcome.out.count("Prognosis") == 0


def test_honest_workbench_bundle_passes_commands(workbench: Workbench):
    """The unchanged bundle of the workbench passes `tmi verify` and `tmi predict`."""
    verified = workbench.verify(workbench.bundle, "--key", workbench.public)
    assert verified.code == 0, verified.err
    predicted = workbench.predict(workbench.bundle, "--key", workbench.public)
    assert predicted.code == 0, predicted.err


@pytest.mark.slow
@pytest.mark.parametrize("rebuild", [r for r in VALID_MODELS if r not in QUICK], ids=lambda r: r.name)
def test_honest_rebuild_is_exported_and_verified(rebuild: ValidModel, nano_config, tmp_path):
    """No valid model is rejected by `tmi export` or `tmi verify`."""
    config = rebuild.change(nano_config)
    run = write_random_run(tmp_path / "run", config, folds=rebuild.folds, seed=rebuild.seed, **rebuild.sharing)
    engines = [word for name in rebuild.artefacts for word in ("--engine", name)]
    exported = tmi("export", run, *engines, "--out", tmp_path / "bundle")
    assert exported.code == 0, exported.err
    verified = tmi("verify", tmp_path / "bundle")
    assert verified.code == 0, verified.err
