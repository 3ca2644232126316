"""An explanation's need of memory is compared with the machine's before a model is loaded."""

from __future__ import annotations

import re

import pytest

from factories.nano import nano
from factories.tmi_command import tmi
from tmi.runtime.explanation.case_explanation import explain
from tmi.runtime.explanation.memory_fit import explanation_bytes, require_explanation_memory
from tmi.toolkit.compute import memory
from tmi.toolkit.compute.memory import AvailableMemory
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.models.live_memory import meta_network

GIB = 2**30


@pytest.fixture
def limit(monkeypatch):
    """Function that sets the bytes that this process can use."""

    def set_limit(size: int) -> None:
        there = AvailableMemory(size=size - memory._own_memory(), source="RAM")
        monkeypatch.setattr(memory, "available_memory", lambda: there)

    return set_limit


@pytest.mark.parametrize(
    ("config", "measured"), [(nano(), 0.64), (tiny(), 0.69), (paper(), 5.29)], ids=["nano", "tiny", "paper"]
)
def test_estimate_is_near_the_measured_peak(config, measured):
    """The estimate is near peaks that were measured, in GiB, and not below; the measured case has a short text."""
    assert measured < explanation_bytes(config, folds=1, sanity=False) / GIB < 1.4 * measured


def test_sanity_check_and_open_engine_need_more(limit):
    """The sanity check keeps a copy of the weights; what the command holds beside is added."""
    with_check, without = (explanation_bytes(tiny(), folds=1, sanity=sanity) for sanity in (True, False))
    assert with_check - without == meta_network(tiny()).weight_bytes
    limit(without)
    require_explanation_memory(tiny(), folds=1, sanity=False, fix="")
    with pytest.raises(UnavailableError, match=r"the explanation needs about [23]\.\d GiB"):
        require_explanation_memory(tiny(), folds=1, sanity=False, beside=2 * GIB, fix="")


@pytest.mark.parametrize("command", ["explain", "explain --run", "report"])
def test_command_that_does_not_fit_ends_before_a_model_is_loaded(
    command, nano_run, nano_bundle, synthetic_cohort, tmp_path, limit
):
    """Exit code 5 with need, available memory and the options that need less; no case is explained."""
    limit(GIB // 3)
    models = ("--run", nano_run) if "--run" in command else ("--bundle", nano_bundle)
    outcome = tmi(command.split()[0], synthetic_cohort, *models, "--out", tmp_path / "out")
    assert outcome.code == 5
    assert re.search(
        r"error: the explanation needs about 0\.\d GiB of memory, and 0\.3 GiB is available \(RAM\)", outcome.err
    )
    assert "--quick" in outcome.err
    assert "--no-memory-check" in outcome.err
    assert "[1/" not in outcome.err


def test_python_call_checks_too(nano_bundle, synthetic_cohort, limit):
    """`explain` raises before the self-test, and its fix names no option of a command."""
    limit(GIB // 3)
    case = next(path.parent for path in sorted(synthetic_cohort.glob("*/clinical.json")))
    with pytest.raises(UnavailableError) as stop:
        explain(case, nano_bundle, sanity=True)
    assert stop.value.fix == "use a machine with more memory, or sanity=False"
