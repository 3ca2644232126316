"""What does one training step take of a CPU, in time and memory, and is it what `tmi train --plan` computes?

The network of the preset gets random weights; one small step makes Adam's moments and starts the libraries, and the
step after it is measured: forward with loss, backward, Adam. Each setting is a process of its own. Its peak is the
kernel's VmHWM, which starts anew before the step, less what the process held before it built the network.

    python benchmarks/training_step.py --size paper --batch 1 --precision 32 bf16-mixed --checkpointing no yes

`--precision` and `--checkpointing` take several values: every combination is measured. A batch of one cannot train a
BatchNorm of single vectors, and `tmi train` passes it over; here those BatchNorms are held still for it, as
`--plan` has it for one case a device. Prints a Markdown table; the last line is JSON. The weights mean nothing.
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
"""Environment variable: memory that the measured process takes beside the step; what a test plants."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured in one process."""

    size: str
    batch: int
    precision: str
    checkpointing: bool
    freeze: tuple[str, ...]
    accumulate: int
    threads: int | None

    @property
    def config(self) -> Config:
        """The whole config; a frozen encoder's output is computed in the step, unless told otherwise."""
        base = SIZES[self.size].config
        train = replace(
            base.train,
            batch_size=2 * self.batch,  # of two devices: a batch of one is no config
            precision=self.precision,
            activation_checkpointing=self.checkpointing,
            freeze=self.freeze,
            accumulate=self.accumulate,
            cache_frozen=False,
        )
        return replace(base, train=train)

    @property
    def label(self) -> str:
        """For a row of the table."""
        parts = [self.precision, *(["checkpointing"] if self.checkpointing else [])]
        parts += [f"freeze {','.join(self.freeze)}"] if self.freeze else []
        parts += [f"accumulate {self.accumulate}"] if self.accumulate > 1 else []
        return f"{self.size}, batch {self.batch}, {', '.join(parts)}"


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak) of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def batch_of(cases: int, shape_DHW: tuple[int, int, int], tokens: int) -> Any:
    """A batch of noise; the labels alternate."""
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
    """One optimiser step over `train.accumulate` batches, as Lightning takes it; seconds of its parts."""
    import torch

    train = module.config.train
    seconds = dict.fromkeys(("forward", "backward", "optimiser"), 0.0)
    marks = [perf_counter()]
    for _ in range(train.accumulate):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=train.precision == "bf16-mixed"):
            loss = module.loss_of(batch)
        marks.append(perf_counter())
        (loss / train.accumulate).backward()
        del loss
        marks.append(perf_counter())
        seconds["forward"] += marks[-2] - marks[-3]
        seconds["backward"] += marks[-1] - marks[-2]
    optimiser.step()
    optimiser.zero_grad()
    seconds["optimiser"] = perf_counter() - marks[-1]
    return seconds


def start_libraries() -> None:
    """A step of a tiny network: what torch and oneDNN load at their first use is not the step's."""
    from tmi.training.loop.lightning_module import FoldModule

    module = FoldModule(replace(tiny(), train=replace(tiny().train, precision="bf16-mixed")), fold=0)
    step(module, module.configure_optimizers(), batch_of(2, (16, 32, 32), 8))


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds and bytes of the step, in this process."""
    import lightning  # noqa: F401  what training imports is there before the count begins
    import torch
    import transformers  # noqa: F401

    from tmi.training.loop.freezing import set_frozen_eval
    from tmi.training.loop.lightning_module import FoldModule
    from tmi.training.loop.memory_estimate import estimate_memory, set_vector_norms_eval

    if setting.threads:
        torch.set_num_threads(setting.threads)
    config = setting.config
    plan = estimate_memory(config, devices=2, accelerator="cpu")
    start_libraries()
    before = resident("VmRSS")
    ballast = bytearray(int(os.environ.get(BALLAST_VARIABLE, "0")))
    ballast[::4096] = b"x" * len(ballast[::4096])
    module = FoldModule(config, fold=0).train()
    set_frozen_eval(module.network, config)
    if setting.batch == 1:
        set_vector_norms_eval(module.network)
    optimiser = module.configure_optimizers()
    torch.manual_seed(0)
    step(module, optimiser, batch_of(setting.batch, (32, 32, 32), 8))
    batch = batch_of(setting.batch, config.ct.shape_DHW, config.clinical.max_length)
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # VmHWM starts anew
    seconds = step(module, optimiser, batch)
    return {
        "setting": asdict(setting),
        "seconds": seconds,
        "libraries": before,
        "peak": resident("VmHWM"),
        "taken": resident("VmHWM") - before,
        "computed": plan.total,
        "threads": torch.get_num_threads(),
    }


def in_own_process(setting: Setting) -> dict[str, Any]:
    """Measure in a new process.

    Raises:
        RuntimeError: it ended otherwise than well.
    """
    argv = [sys.executable, __file__, "--measured", json.dumps(asdict(setting))]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}  # what is freed goes back at once, and is not counted
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"{setting.label}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table(answers: list[dict[str, Any]]) -> str:
    """The measured settings as a Markdown table."""
    rows = [
        "| setting | forward s | backward s | Adam s | step took GiB | computed GiB | computed / taken |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for answer in answers:
        seconds, taken, computed = answer["seconds"], answer["taken"], answer["computed"]
        times = " | ".join(f"{seconds[name]:.1f}" for name in ("forward", "backward", "optimiser"))
        told = Setting(**answer["setting"]).label
        sizes = f"{taken / GIB:.2f} | {computed / GIB:.2f} | {computed / taken:.2f}"
        rows.append(f"| {told} | {times} | {sizes} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("32", "bf16-mixed"), nargs="+", default=["32"])
    parser.add_argument("--checkpointing", choices=("no", "yes"), nargs="*", default=["no"], help="bare: yes")
    parser.add_argument("--freeze", default="", help="as in `tmi train`: text, or ct,text, ...")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch; default: as many as there are cores")
    parser.add_argument("--measured", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measured:
        given = json.loads(asked.measured)
        print(json.dumps(measure(Setting(**given | {"freeze": tuple(given["freeze"])}))))
        return
    answers = []
    for precision, checkpointing in itertools.product(asked.precision, asked.checkpointing or ["yes"]):
        setting = Setting(
            size=asked.size,
            batch=asked.batch,
            precision=precision,
            checkpointing=checkpointing == "yes",
            freeze=tuple(part for part in asked.freeze.split(",") if part),
            accumulate=asked.accumulate,
            threads=asked.threads,
        )
        print(setting.label, "...", file=sys.stderr, flush=True)
        answers.append(in_own_process(setting))
    print(table(answers))
    print(json.dumps({"benchmark": "training_step", "cores": os.cpu_count(), "measured": answers}))


if __name__ == "__main__":
    main()
