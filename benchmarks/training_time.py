"""Where does `tmi train` spend its processor time: data, forward, backward, validation, writing?

The program trains a preset on a synthetic cohort in this process, with a clock around each part, and prints a table
and, as its last line, JSON. The clocks take processor time of all threads, which other work on the machine lengthens
less than the wall clock; both are printed. Start-up is the import of torch, Lightning, MONAI and transformers.

    python benchmarks/training_time.py [--preset tiny] [--epochs 6] [--folds 2] [--threads 2] [--cohort FOLDER]

The digest of the trained weights is printed too: the same settings and threads give the same one on a machine.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from tmi.toolkit.compute.cpu import limit_spinning


class Clock:
    """Processor and wall time of each part; the time of a part inside another one counts for the inner part alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._open: list[list[float]] = []

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        """Call a function; the time that inner parts took is subtracted."""
        inner = [0.0, 0.0]
        self._open.append(inner)
        start = process_time(), perf_counter()
        try:
            return call()
        finally:
            taken = [process_time() - start[0], perf_counter() - start[1]]
            self._open.pop()
            if self._open:
                self._open[-1][:] = [total + own for total, own in zip(self._open[-1], taken, strict=True)]
            row = self.seconds.setdefault(name, [0.0, 0.0, 0])
            row[:] = [row[0] + taken[0] - inner[0], row[1] + taken[1] - inner[1], row[2] + 1]

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Replace a function of a module or class by one that is measured."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def measured(*args: Any, **options: Any) -> Any:
            return self.measure(name, lambda: function(*args, **options))

        setattr(owner, attribute, measured)


def wrap_parts(clock: Clock) -> None:
    """Put a clock around every part of a training."""
    import lightning
    import torch

    from tmi.training.data.fold_dataset import FoldDataset
    from tmi.training.loop import checkpointing, cross_validation, fold_training
    from tmi.training.loop.checkpointing import BestEpochCheckpoint
    from tmi.training.loop.lightning_module import FoldModule

    for owner, attribute, name in (
        (cross_validation, "prepare_cohort", "preparation of the cases"),
        (cross_validation, "fit_memory", "estimate of the memory"),
        (FoldDataset, "__init__", "scaler and vocabulary"),
        (FoldDataset, "batch", "batches"),
        (FoldModule, "__init__", "network and its random weights"),
        (FoldModule, "loss_of", "forward"),
        (torch.Tensor, "backward", "backward"),
        (torch.optim.Adam, "step", "optimiser"),
        (BestEpochCheckpoint, "_validate_epoch", "validation"),
        (lightning.Trainer, "save_checkpoint", "checkpoint of each epoch"),
        (checkpointing, "_save_weights", "weights of the best epoch"),
        (BestEpochCheckpoint, "write_history", "history.csv"),
        (fold_training, "_report_fold", "evaluation of a fold"),
        (lightning.Trainer, "fit", "Lightning's loop"),
    ):
        clock.wrap(owner, attribute, name)


def table(seconds: dict[str, list[float]]) -> str:
    """The parts as a Markdown table, the longest first."""
    total = sum(row[0] for row in seconds.values())
    rows = ["| part | processor s | share | wall s | calls |", "| --- | --- | --- | --- | --- |"]
    for name, (cpu, wall, calls) in sorted(seconds.items(), key=lambda item: -item[1][0]):
        rows.append(f"| {name} | {cpu:.2f} | {cpu / total:.0%} | {wall:.2f} | {calls} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="threads of torch; default: all cores")
    parser.add_argument("--cohort", type=Path, help="cohort; default: 24 synthetic cases")
    options = parser.parse_args()
    clock = Clock()
    limit_spinning()  # as `tmi` does, before torch is loaded

    def start_up() -> None:
        import tmi.training.loop.fold_training  # noqa: F401

    clock.measure("start-up", start_up)
    import torch

    from tmi.toolkit.config.presets import preset
    from tmi.toolkit.synthetic.cohort import make_cohort
    from tmi.training import train

    if options.threads:
        torch.set_num_threads(options.threads)
    config = preset(options.preset)
    config = replace(config, train=replace(config.train, epochs=options.epochs, folds=options.folds))
    with tempfile.TemporaryDirectory() as folder:
        cohort = options.cohort
        if cohort is None:
            cohort = Path(folder) / "cohort"
            make_cohort(cohort, cases=24, seed=0)
        wrap_parts(clock)
        clock.measure("the rest", lambda: train(cohort, Path(folder) / "run", config=config))
        weights = sorted((Path(folder) / "run").glob("fold*/model.safetensors"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()
    print(table(clock.seconds), file=sys.stderr)
    document = {
        "benchmark": "training_time",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "weights": digest,
        "seconds": {name: [round(row[0], 3), round(row[1], 3)] for name, row in clock.seconds.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
