"""Do `channels_last_3d`, bfloat16 autocast or `torch.compile` speed up a training step on a CPU, with equal results?

Every variant has a network with the same random weights, and takes the same steps (forward with loss, backward, Adam)
on the same batch with the same dropout. After one step of each, which is the warm-up and the compilation, they take a
step in turn in one process, in an order that is reversed after each round. The table has the median of the ratios to
the default of the same round, and the largest difference of the logits after the first step, in evaluation mode,
divided by the largest logit. The first step of `torch.compile` contains the compilation of the whole network.

    python benchmarks/training_variants.py [--size tiny|small|middle|paper] [--batch 4] [--rounds 9]
        [--variants channels_last_3d bf16 compile] [--checkpointing]

With a batch of one, BatchNorms of single vectors are in evaluation mode, as in `benchmarks/training_step.py`. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from bench_inputs import SIZES
from tmi.runtime.engines.host import cpu_name
from tmi.toolkit.compute.cpu import limit_spinning
from tmi.toolkit.config.presets import tiny
from training_step import batch_of, step

DEFAULT = "default"
VARIANTS = ("channels_last_3d", "bf16", "compile")


@dataclass(kw_only=True)
class Trained:
    """A variant and its state."""

    take_step: Callable[[], None]
    logits: Callable[[], Any]
    first_seconds: float = 0.0
    error: float = 0.0


def variant(name: str, size: str, batch_size: int, *, checkpointing: bool) -> Trained:
    """Build the network of a variant, its optimiser and its batch; the weights are the same for all."""
    import torch

    from tmi.training.loop.lightning_module import FoldModule
    from tmi.training.loop.memory_estimate import set_vector_norms_eval

    base = tiny() if size == "tiny" else SIZES[size].config
    config = replace(base, train=replace(base.train, precision="bf16-mixed" if name == "bf16" else "32"))
    module = FoldModule(config, fold=0, checkpointing=checkpointing)

    def train() -> None:
        module.train()
        if batch_size == 1:
            set_vector_norms_eval(module.network)

    train()
    torch.manual_seed(0)
    batch = batch_of(batch_size, config.ct.shape_DHW, config.clinical.max_length)
    if name == "channels_last_3d":
        module.network.to(memory_format=torch.channels_last_3d)
        batch = replace(batch, ct=batch.ct.contiguous(memory_format=torch.channels_last_3d))
    if name == "compile":
        torch._inductor.config.fallback_random = True  # dropout draws the numbers of eager mode
        module.network.forward = torch.compile(module.network.forward)
    optimiser = module.configure_optimizers()

    def take_step() -> None:
        torch.manual_seed(1)
        step(module, optimiser, batch)

    def logits() -> Any:
        module.network.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16"):
            eager = getattr(module.network.forward, "_torchdynamo_orig_callable", module.network.forward)
            output = eager(batch.ct, batch.input_ids, batch.attention_mask, batch.radiomics)
        train()
        return output.logits_BK.float()

    return Trained(take_step=take_step, logits=logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", *SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, for less memory")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS)
    options = parser.parse_args()
    limit_spinning()
    names = (DEFAULT, *options.variants)
    trained = {name: variant(name, options.size, options.batch, checkpointing=options.checkpointing) for name in names}
    for name, one in trained.items():
        start = perf_counter()
        one.take_step()
        one.first_seconds = perf_counter() - start
        print(f"{name}: first step {one.first_seconds:.1f} s", flush=True)
    reference = trained[DEFAULT].logits()
    for one in trained.values():
        one.error = float((one.logits() - reference).abs().max() / reference.abs().max())
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 else names[::-1]:
            start = perf_counter()
            trained[name].take_step()
            seconds[name].append(perf_counter() - start)
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    rows = {
        name: {
            "median_seconds": statistics.median(seconds[name]),
            "of_default": statistics.median(a / b for a, b in zip(seconds[name], seconds[DEFAULT], strict=True)),
            "first_seconds": trained[name].first_seconds,
            "difference_of_logits": trained[name].error,
        }
        for name in names
    }
    print("| variant | s | of the default | first step s | difference of the logits |\n| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['median_seconds']:.3g} | {row['of_default']:.2f} | {row['first_seconds']:.3g} | "
            f"{row['difference_of_logits']:.1e} |"
        )
    print(
        json.dumps(
            {
                "benchmark": "training_variants",
                "size": options.size,
                "batch": options.batch,
                "rounds": options.rounds,
                "processor": cpu_name(),
                "cores": os.cpu_count(),
                "variants": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
