"""A training's need of memory is compared with what the machine has, before any case is prepared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from factories.cases import write_cohort
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.compute import memory
from tmi.toolkit.compute.memory import AvailableMemory
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.run_folder import RunFolder
from tmi.training.loop import memory_fit
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.memory_estimate import estimate_text_pretraining
from tmi.training.loop.memory_fit import GIB, fit_memory

CPU = HardwareConfig(accelerator="cpu")
OPTION = re.compile(r"(--[^()]*?) \(([0-9.]+) GiB\)")


@pytest.fixture
def free(monkeypatch):
    """Function that sets the machine's free memory in GiB."""

    def set_free(gib: float, source: str = "RAM") -> None:
        there = AvailableMemory(size=int(gib * GIB), source=source)
        monkeypatch.setattr(memory_fit, "available_memory", lambda: there)

    return set_free


@pytest.fixture
def quick(monkeypatch):
    """A formula in place of the estimate, near its values for the preset `paper`: 24.5, 13.5 and 8 GiB."""

    def step_bytes(config, devices, accelerator):
        train, (_, height, width) = config.train, config.ct.shape_DHW
        activations = 11 * -(-train.batch_size // devices) * height * width / 512**2
        activations /= (1 + (train.precision != "32")) * (1 + train.activation_checkpointing)
        return int((2.5 + activations) * GIB)

    monkeypatch.setattr(memory_fit, "_step_bytes", step_bytes)


def rejected(config, hardware=CPU, **more) -> UnavailableError:
    with pytest.raises(UnavailableError) as stop:
        fit_memory(config, hardware, **more)
    return stop.value


def test_training_that_fits_is_left_alone(free, quick):
    """Nothing is chosen where the memory suffices."""
    free(25)
    fit = fit_memory(paper(), CPU)
    assert fit is not None
    assert not fit.checkpointing
    assert fit.document()["chosen"] == {}


def test_checkpointing_is_chosen_if_it_makes_it_fit(free, quick):
    """Activation checkpointing does not change the weights, so it is chosen and reported."""
    free(18, "limit of the control group")
    fit = fit_memory(paper(), CPU)
    assert fit is not None
    assert fit.checkpointing
    assert fit.needed < 18 * GIB < fit.needed_as_set
    assert "24.5 GiB, and 18.0 GiB is available (limit of the control group): activation checkpointing" in fit.summary()


def test_given_setting_is_not_replaced(free, quick):
    """Where checkpointing was set by hand, it is proposed and not chosen."""
    free(18)
    error = rejected(paper(), replace(CPU, memory="as-set"))
    assert error.exit_code == 5
    assert error.fix.startswith("--set train.activation_checkpointing=true (13.5 GiB)")


def test_bfloat16_is_proposed(free, quick):
    """Mixed precision changes the weights: it is proposed where checkpointing does not suffice."""
    free(12)
    error = rejected(paper())
    assert "needs about 24.5 GiB of memory, and 12.0 GiB is available (RAM)" in str(error)
    assert error.fix.startswith("--precision bf16-mixed (8.0 GiB)")


def test_smaller_batch_with_accumulation_is_proposed(free, quick):
    """A batch of eight is proposed in parts that are accumulated to the same number of cases."""
    large = replace(paper(), train=replace(paper().train, batch_size=8))
    free(17)
    assert "--set train.batch_size=2 --set train.accumulate=4 (13.5 GiB)" in rejected(large).fix


def test_fewer_parallel_folds_are_proposed(free, quick):
    """Folds trained at the same time share the machine's memory."""
    free(40)
    fix = rejected(paper(), replace(CPU, parallel_folds=3)).fix
    assert fix.startswith("--parallel-folds 2 (")
    assert "--parallel-folds 1 (24.5 GiB)" in fix


def test_processes_of_a_fold_share_the_memory(free, quick):
    """Two processes on one machine need two shares of the batch and two sets of weights."""
    wide = replace(paper(), train=replace(paper().train, batch_size=4))
    one, two = (memory_fit._needed(wide, replace(CPU, devices=n), 0) for n in (1, 2))
    assert one < two < one + 4 * GIB


@pytest.mark.parametrize(
    ("config", "hardware", "gib"),
    [
        (paper(), CPU, 12),
        (paper(), CPU, 6),
        (paper(), replace(CPU, memory="as-set"), 12),
        (paper(), replace(CPU, parallel_folds=5), 16),
        (override(paper(), ["train.batch_size=16"]), replace(CPU, devices=2), 60),
    ],
)
def test_every_proposal_fits(free, quick, config, hardware, gib):
    """A training with the proposed options is accepted, with the need that the proposal states."""
    free(gib)
    proposals = OPTION.findall(rejected(config, hardware).fix)
    assert proposals
    for options, need in proposals:
        words = options.split()
        pairs = dict.fromkeys(w for n, w in pairwise(words) if n == "--set")
        changed = override(config, list(pairs))
        on = hardware
        for name, value in pairwise(words):
            if name == "--precision":
                changed = replace(changed, train=replace(changed.train, precision=value))
            if name == "--parallel-folds":
                on = replace(on, parallel_folds=int(value))
        on.check(changed)
        fit = fit_memory(changed, on)
        assert fit is not None
        assert fit.needed / GIB == pytest.approx(float(need), abs=0.06)


def test_no_proposal_names_a_larger_machine(free, quick):
    """Where no option helps, the fix says so."""
    free(0.01)
    assert rejected(paper()).fix.startswith("train on a machine with more memory")


def test_gpu_with_least_memory_counts(quick, monkeypatch):
    """A fold on two GPUs is limited by the fuller one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((80, 10)[number] * GIB, 80 * GIB))
    config = override(paper(), ["train.batch_size=4"])
    assert fit_memory(config, HardwareConfig(accelerator="gpu")) is not None
    error = rejected(config, HardwareConfig(accelerator="gpu", devices=2))
    assert "10.0 GiB is available (GPU 1)" in str(error)


def test_cohort_in_memory_counts(quick):
    """CTs that are held in memory are added to the need."""
    without, with_cases = (memory_fit._needed(tiny(), CPU, cases) for cases in (0, 100))
    assert with_cases - without == 100 * 4 * 24 * 48 * 48


def test_unknown_memory_rejects_nothing(quick, monkeypatch):
    """A system that does not state its free memory trains as before."""
    monkeypatch.setattr(memory_fit, "available_memory", lambda: None)
    fit = fit_memory(paper(), CPU)
    assert fit is not None
    assert fit.available is None


@pytest.mark.parametrize("case", ["forest", "unchecked"])
def test_nothing_is_compared_without_a_network_or_check(free, case):
    """A model without a network has no estimate, and `--no-memory-check` compares nothing."""
    free(0)
    config = override(tiny(), ["system.name=rf"]) if case == "forest" else tiny()
    assert fit_memory(config, replace(CPU, memory="unchecked" if case == "unchecked" else "fit")) is None


@pytest.fixture
def cohort(tmp_path):
    return write_cohort(tmp_path / "cohort", cases=8, with_mask=False)


def test_train_ends_with_exit_code_5_under_a_group_limit(cohort, tmp_path, monkeypatch):
    """`tmi train` reads the control group's files, and prepares nothing and removes no run if they leave too little."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    group = tmp_path / "cgroup" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{30 * 2**20}\n")
    (group / "memory.current").write_text("0\n")
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    outcome = tmi("train", cohort, "--out", run, "--preset", "tiny", "--folds", "2", "--force")
    assert outcome.code == 5
    assert "30 MiB is available (limit of the control group)" in outcome.err
    assert "--no-memory-check" in outcome.err
    assert [path.name for path in run.iterdir()] == ["run.json"]


def test_compare_checks_every_run_first(cohort, tmp_path, free):
    """`tmi compare` trains nothing if one of its runs does not fit."""
    free(0.03)
    out = tmp_path / "comparison"
    outcome = tmi("compare", cohort, "--table", "1", "--preset", "tiny", "--folds", "2", "--out", out)
    assert outcome.code == 5
    assert not list(out.glob("runs/*"))


def test_plan_states_whether_it_fits(tmp_path, free, quick):
    """`--plan` prints the comparison with this machine."""
    free(12)
    outcome = tmi("train", "--preset", "paper", "--accelerator", "cpu", "--plan", cwd=tmp_path)
    assert outcome.code == 0
    assert "on this machine (cpu): the training needs about 24.5 GiB" in outcome.out
    assert "fix: --precision bf16-mixed" in outcome.out


class Recorder:
    """Callbacks that keep the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_preparation_start(self, total):
        return lambda case: None

    def on_warning(self, message):
        self.warnings.append(message)


def test_choice_is_reported_recorded_and_passed_on(cohort, tmp_path, free, monkeypatch, nano_config):
    """The run records need, memory and choice; its config stays, so that it resumes on a larger machine."""
    from tmi.training.loop import cross_validation
    from tmi.training.loop.run_spec import RunSpec

    used = []
    monkeypatch.setattr(cross_validation, "_train_folds", lambda context, *_: used.append(context.hardware))
    monkeypatch.setattr(cross_validation, "write_summary", lambda *args, **more: {})
    config = override(nano_config, ["train.folds=2"])
    held = 8 * 4 * int(torch.tensor(config.ct.shape_DHW).prod())
    checkpointed = memory_fit._step_bytes(memory_fit._with_checkpointing(config), 1, "cpu") + held

    def train(gib: float, *, resume: bool = False) -> list[str]:
        free(gib)
        recorder = Recorder()
        spec = RunSpec(cohort=open_cohort(cohort), config=config, out=tmp_path / "run", schema=load_schema(None),
                       hardware=HardwareConfig(accelerator="cpu"))  # fmt: skip
        cross_validation.cross_validate(spec, recorder, resume=resume)
        return [warning for warning in recorder.warnings if "memory" in warning or "GiB" in warning or "MiB" in warning]

    assert "activation checkpointing is used" in train((checkpointed + 100) / GIB)[0]
    assert used[-1].checkpointing
    record = RunFolder.open(tmp_path / "run").state["memory"]
    assert record["chosen"] == {"activation_checkpointing": True}
    assert record["source"] == "RAM"
    assert not json.loads((tmp_path / "run" / "config.json").read_text())["train"]["activation_checkpointing"]
    assert train(10, resume=True) == []
    assert not used[-1].checkpointing
    assert RunFolder.open(tmp_path / "run").state["memory"]["chosen"] == {}


def test_pretraining_of_the_text_encoder_that_does_not_fit(free, tmp_path):
    """`tmi pretrain-text` ends with exit code 5 before its first step, and names a batch that fits."""
    free(0.04)
    arguments = ("pretrain-text", "--preset", "tiny", "--steps", 1, "--batch", 64, "--out", tmp_path / "reading")
    outcome = tmi(*arguments)
    assert outcome.code == 5, outcome.err
    assert re.search(r"error: the pre-training needs about .*, and 41 MiB is available \(RAM\)\n", outcome.err)
    assert re.search(r"fix: --batch (32|16|8|4|2) \([0-9]+ MiB\), or .*; --no-memory-check", outcome.err)
    assert not (tmp_path / "reading").exists()


def test_memory_of_the_pretraining_grows_with_batch_length_and_weights():
    """The estimate counts the tensors of the backward pass, for each text and token, and 16 bytes for each weight."""
    sizes = tiny().network.text_encoder
    small, wide, long = (
        estimate_text_pretraining(sizes, batch=batch, length=length, targets=9)
        for batch, length in ((8, 50), (16, 50), (8, 100))
    )
    weights = 2 * small - wide
    assert 16 * sizes.vocab_size * sizes.hidden_size < weights < small
    assert long - weights >= 2 * (small - weights)
