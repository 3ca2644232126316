"""How much time and memory does a training step take, and does `tmi train --plan` compute the same memory?

The network of the preset gets random weights. A small step creates Adam's moments and initialises the libraries; the
next step is measured: forward with loss, backward, Adam. Each setting runs in a new process. The memory of a step is
the kernel's VmHWM, reset before the step, minus the memory of the process before the network was built. On a GPU
(`--device cuda`) it is the peak of torch's allocator, and every part of the step is synchronised before it is timed.

    python benchmarks/training_step.py --size paper --batch 1 --precision 32 bf16-mixed --checkpointing no yes

`--precision` and `--checkpointing` take several values, and every combination is measured. A BatchNorm of single
vectors cannot train with a batch of one, and `tmi train` skips such a batch; here those BatchNorms are in evaluation
mode, as `--plan` assumes for one case per device. The program prints a Markdown table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from bench_inputs import SIZES
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import Config

GIB = 2**30
BALLAST_VARIABLE = "TMI_BALLAST_BYTES"
"""Environment variable: bytes that the measured process allocates in addition, to test the measurement."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Configuration of one measurement."""

    size: str
    batch: int
    precision: str
    checkpointing: bool
    freeze: tuple[str, ...]
    accumulate: int
    threads: int | None
    device: str = "cpu"

    @property
    def config(self) -> Config:
        """The config of training, without the cache of frozen encoders: their outputs are computed in the step."""
        base = SIZES[self.size].config
        train = replace(
            base.train,
            batch_size=2 * self.batch,  # for two devices, because a config needs a batch of at least two
            precision=self.precision,
            activation_checkpointing=self.checkpointing,
            freeze=self.freeze,
            accumulate=self.accumulate,
            cache_frozen=False,
        )
        return replace(base, train=train)

    @property
    def label(self) -> str:
        """Name of the setting in the table."""
        parts = [self.precision, *(["checkpointing"] if self.checkpointing else [])]
        parts += [f"freeze {','.join(self.freeze)}"] if self.freeze else []
        parts += [f"accumulate {self.accumulate}"] if self.accumulate > 1 else []
        parts += [self.device] if self.device != "cpu" else []
        return f"{self.size}, batch {self.batch}, {', '.join(parts)}"


def resident(field: str) -> int:
    """Resident memory of this process in bytes: VmRSS (current) or VmHWM (peak)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def batch_of(cases: int, shape_DHW: tuple[int, int, int], tokens: int) -> Any:
    """A batch of random inputs with alternating labels."""
    import torch

    from tmi.training.data.fold_dataset import Batch

    ids = torch.ones((cases, tokens), dtype=torch.int64)
    return Batch(
        ct=torch.rand((cases, 1, *shape_DHW)),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        radiomics=torch.rand((cases, 1781)),
        labels=torch.arange(cases) % 2,
    )


def step(module: Any, optimiser: Any, batch: Any) -> dict[str, float]:
    """Take one optimiser step over `train.accumulate` batches, as Lightning does; the seconds of its parts."""
    import torch

    train, device = module.config.train, batch.ct.device.type

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    seconds = dict.fromkeys(("forward", "backward", "optimiser"), 0.0)
    marks = [now()]
    for _ in range(train.accumulate):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=train.precision == "bf16-mixed"):
            loss = module.loss_of(batch)
        marks.append(now())
        (loss / train.accumulate).backward()
        del loss
        marks.append(now())
        seconds["forward"] += marks[-2] - marks[-3]
        seconds["backward"] += marks[-1] - marks[-2]
    optimiser.step()
    optimiser.zero_grad()
    seconds["optimiser"] = now() - marks[-1]
    return seconds


def initialise_libraries(device: Any) -> None:
    """Take a step of a tiny network, so that memory of the first use of torch and its libraries is not counted."""
    from tmi.training.loop.lightning_module import FoldModule

    module = FoldModule(replace(tiny(), train=replace(tiny().train, precision="bf16-mixed")), fold=0).to(device)
    step(module, module.configure_optimizers(), batch_of(2, (16, 32, 32), 8).to(device))


def measure(setting: Setting) -> dict[str, Any]:
    """Measure the step in this process: seconds and bytes."""
    import lightning  # noqa: F401  imported before the measurement, as in a training
    import torch
    import transformers  # noqa: F401

    from tmi.training.loop.freezing import set_frozen_eval
    from tmi.training.loop.lightning_module import FoldModule
    from tmi.training.loop.memory_estimate import estimate_memory, set_vector_norms_eval

    if setting.threads:
        torch.set_num_threads(setting.threads)
    config = setting.config
    device = torch.device(setting.device)
    on_gpu = device.type == "cuda"
    plan = estimate_memory(config, devices=2, accelerator="gpu" if on_gpu else "cpu")
    initialise_libraries(device)
    before = torch.cuda.memory_allocated() if on_gpu else resident("VmRSS")
    ballast = bytearray(int(os.environ.get(BALLAST_VARIABLE, "0")))
    ballast[::4096] = b"x" * len(ballast[::4096])
    module = FoldModule(config, fold=0).to(device).train()
    set_frozen_eval(module.network, config)
    if setting.batch == 1:
        set_vector_norms_eval(module.network)
    optimiser = module.configure_optimizers()
    torch.manual_seed(0)
    step(module, optimiser, batch_of(setting.batch, (32, 32, 32), 8).to(device))
    batch = batch_of(setting.batch, config.ct.shape_DHW, config.clinical.max_length).to(device)
    if on_gpu:
        step(module, optimiser, batch)  # cuDNN chooses its kernels at the first step of a shape
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # resets VmHWM
    seconds = step(module, optimiser, batch)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    return {
        "setting": asdict(setting),
        "seconds": seconds,
        "libraries": before,
        "peak": peak,
        "taken": peak - before,
        "computed": plan.total,
        "threads": torch.get_num_threads(),
    }


def in_own_process(setting: Setting) -> dict[str, Any]:
    """Measure in a new process.

    Raises:
        RuntimeError: the process failed.
    """
    argv = [sys.executable, __file__, "--measured", json.dumps(asdict(setting))]
    env = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
    }  # freed memory is returned at once, so that it is not counted
    process = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    if process.returncode:
        raise RuntimeError(f"{setting.label}: exit code {process.returncode}\n{process.stderr[-2000:]}")
    measurement: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return measurement


def table(measurements: list[dict[str, Any]]) -> str:
    """The measured settings as a Markdown table."""
    rows = [
        "| setting | forward s | backward s | Adam s | step took GiB | computed GiB | computed / taken |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for measured in measurements:
        seconds, taken, computed = measured["seconds"], measured["taken"], measured["computed"]
        times = " | ".join(f"{seconds[name]:.2f}" for name in ("forward", "backward", "optimiser"))
        label = Setting(**measured["setting"]).label
        sizes = f"{taken / GIB:.2f} | {computed / GIB:.2f} | {computed / taken:.2f}"
        rows.append(f"| {label} | {times} | {sizes} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("32", "bf16-mixed"), nargs="+", default=["32"])
    parser.add_argument("--checkpointing", choices=("no", "yes"), nargs="*", default=["no"], help="no value: yes")
    parser.add_argument("--freeze", default="", help="as in `tmi train`: text, or ct,text, ...")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch; default: all cores")
    parser.add_argument("--measured", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measured:
        fields = json.loads(options.measured)
        print(json.dumps(measure(Setting(**fields | {"freeze": tuple(fields["freeze"])}))))
        return
    measurements = []
    for precision, checkpointing in itertools.product(options.precision, options.checkpointing or ["yes"]):
        setting = Setting(
            size=options.size,
            batch=options.batch,
            precision=precision,
            checkpointing=checkpointing == "yes",
            freeze=tuple(part for part in options.freeze.split(",") if part),
            accumulate=options.accumulate,
            threads=options.threads,
            device=options.device,
        )
        print(setting.label, "...", file=sys.stderr, flush=True)
        measurements.append(in_own_process(setting))
    print(table(measurements))
    print(json.dumps({"benchmark": "training_step", "cores": os.cpu_count(), "measured": measurements}))


if __name__ == "__main__":
    main()
