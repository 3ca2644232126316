"""Predicts a cohort with submitit, one shard a job: python submitit_shards.py COHORT BUNDLE OUT SHARDS [CLUSTER].

CLUSTER is `slurm` (default) or `local`. submitit passes the job to Slurm and reports its end; `tmi` does the rest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import submitit


def predict_shard(cohort: str, bundle: str, out: str, number: int, count: int) -> int:
    """Predict one shard; a rejected case (exit code 3) is a result."""
    command = ["tmi", "predict", cohort, "--bundle", bundle, "--engine", "openvino", "--threads", "1"]
    command += ["--shard", f"{number}/{count}", "--resume", "-o", f"{out}/part.{number}.jsonl"]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code not in (0, 3):
        raise RuntimeError(f"shard {number}/{count} ended with exit code {code}")
    return code


def main() -> None:
    """Submit all shards and wait for them."""
    cohort, bundle, out, shards, *cluster = sys.argv[1:]
    Path(out).mkdir(exist_ok=True)
    executor = submitit.AutoExecutor(folder=Path(out) / "jobs", cluster=cluster[0] if cluster else "slurm")
    executor.update_parameters(timeout_min=600, cpus_per_task=2, slurm_array_parallelism=100)
    with executor.batch():
        jobs = [executor.submit(predict_shard, cohort, bundle, out, n, int(shards)) for n in range(1, int(shards) + 1)]
    for job in jobs:
        job.result()


if __name__ == "__main__":
    main()
