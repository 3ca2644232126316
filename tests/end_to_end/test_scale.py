"""The recipes of docs/scale.md: each predicts the shards of a cohort, and `tmi collect` joins them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from factories.paths import ROOT
from factories.slurm import missing_programs, slurm
from factories.tmi_command import tmi

RECIPES = ROOT / "docs" / "examples" / "scale"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def cohort(synthetic_cohort, tmp_path_factory) -> Path:
    """Eight cases; one is rejected, which is no failure of a task."""
    folder = Path(shutil.copytree(synthetic_cohort, tmp_path_factory.mktemp("scale") / "cohort"))
    (sorted(folder.glob("*/clinical.json"))[2]).write_text("{")
    return folder


def _environment(cohort: Path, bundle: Path, out: Path, **more: str) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    path = f"{BIN}:{os.environ.get('PATH', '')}"
    given = {"COHORT": cohort, "BUNDLE": bundle, "OUT": out, "ENGINE": "onnx", "OMP_NUM_THREADS": "1", "PATH": path}
    return {**os.environ, **{name: str(value) for name, value in given.items()}, **more}


def _require_collected(cohort: Path, bundle: Path, out: Path, *, engine: str = "onnx") -> None:
    """The shards join, and equal one prediction of the cohort case by case."""
    joined = tmi("collect", cohort, *sorted(out.glob("part.*.jsonl")), "--bundle", bundle, "--json")
    assert joined.code in (0, 3), joined.err
    threads = joined.document["engine"]["threads"]
    whole = tmi("predict", cohort, "--bundle", bundle, "--engine", engine, "--threads", threads, "--json")
    assert joined.code == whole.code
    results = list(zip(joined.document["results"], whole.document["results"], strict=True))
    for one, other in results:
        times = (
            {"seconds", "overlapped", "probability", "folds", "spread"} if threads > 1 else {"seconds", "overlapped"}
        )
        assert {k: v for k, v in one.items() if k not in times} == {k: v for k, v in other.items() if k not in times}
        # Several threads share a sum differently in each process.
        assert one.get("probability") == pytest.approx(other.get("probability"), abs=1e-6)


@pytest.mark.long
def test_slurm_script_predicts_one_shard_a_task(cohort, nano_bundle, tmp_path):
    """The script as Slurm starts it: one task of the array a shard, and a second start of a task computes nothing."""
    out = tmp_path / "parts"
    for task in ("1", "2", "3", "2"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_CPUS_PER_TASK": "1"}
        words = ["sh", str(RECIPES / "slurm-array.sh")]
        done = subprocess.run(
            words, env=_environment(cohort, nano_bundle, out, **array), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "are already predicted" in done.stderr
    _require_collected(cohort, nano_bundle, out)


@pytest.mark.long
def test_kubernetes_job_predicts_one_shard_a_pod(cohort, nano_bundle, tmp_path):
    """The container's command as an Indexed Job starts it: indices from 0, as many shards as completions."""
    job = yaml.safe_load((RECIPES / "kubernetes-job.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (job["kind"], spec["completionMode"], given["COUNT"]) == ("Job", "Indexed", str(spec["completions"]))
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    out = tmp_path / "parts"
    for index in range(2):
        pod = {"JOB_COMPLETION_INDEX": str(index), "COUNT": "2"}
        command = [*container["command"], *container["args"]]
        done = subprocess.run(
            command, env=_environment(cohort, nano_bundle, out, **pod), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    _require_collected(cohort, nano_bundle, out)


@pytest.mark.parametrize("recipe", ["slurm-array.sh", "kubernetes-job.yaml"])
def test_failure_of_a_task_is_reported(tmp_path, recipe):
    """Only exit code 3 counts as done: a bundle that does not exist fails the task, and the scheduler repeats it."""
    (tmp_path / "tmi").write_text("#!/bin/sh\nexit ${CODE}\n")
    (tmp_path / "tmi").chmod(0o755)
    if recipe.endswith(".sh"):
        command = ["sh", str(RECIPES / recipe)]
    else:
        job = yaml.safe_load((RECIPES / recipe).read_text())
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command = [*container["command"], *container["args"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "0", "COUNT": "1"}
    codes = [
        subprocess.run(command, env={**environment, "CODE": str(code)}, check=False).returncode
        for code in (0, 2, 3, 4, 130)
    ]
    assert codes == [0, 2, 0, 4, 130]


@pytest.mark.long
def test_submitit_predicts_one_shard_a_job(cohort, nano_bundle, tmp_path):
    """The script with submitit's own executor for one machine."""
    out = tmp_path / "parts"
    words = [sys.executable, RECIPES / "submitit_shards.py", cohort, nano_bundle, out, "2", "local"]
    done = subprocess.run(
        [str(word) for word in words],
        env=_environment(cohort, nano_bundle, out), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _require_collected(cohort, nano_bundle, out, engine="openvino")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed (Debian: parallel)")
def test_gnu_parallel_predicts_one_shard_a_job(cohort, nano_bundle, tmp_path):
    """The command of the page on this machine alone."""
    out = tmp_path / "parts"
    page = (ROOT / "docs" / "scale.md").read_text()
    (line,) = [line.strip().strip("'") for line in page.splitlines() if line.strip().startswith("'tmi predict /data")]
    line = line.replace("/data/cohort", str(cohort)).replace("/data/bundle", str(nano_bundle))
    line = line.replace("/data/part", f"{out}/part").replace("/10", "/4").replace("--engine openvino", "--engine onnx")
    done = subprocess.run(
        ["parallel", "-j", "2", line, ":::", "1", "2", "3", "4"],
        env=_environment(cohort, nano_bundle, out), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode <= 4, done.stderr  # the number of jobs that failed: a rejected case is one
    _require_collected(cohort, nano_bundle, out)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(missing_programs() != [], reason="Slurm is not installed (Debian: slurm-wlm munge)")
@pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons run as root in this test")
def test_slurm_array_with_a_killed_task(nano_bundle, tmp_path):
    """A real array over 60 cases: a task is killed and requeued, and no case is missing or there twice."""
    from tmi.toolkit.synthetic.cohort import make_cohort

    cohort, out = tmp_path / "cohort", tmp_path / "parts"
    make_cohort(cohort, cases=60, seed=3)
    with slurm(tmp_path / "slurm", cores=2) as cluster:
        environment = _environment(cohort, nano_bundle, out)
        given = {name: environment[name] for name in ("COHORT", "BUNDLE", "OUT", "ENGINE", "OMP_NUM_THREADS", "PATH")}
        script = str(RECIPES / "slurm-array.sh")
        words = ("--parsable", "--array=1-4", "--cpus-per-task=1", f"--output={tmp_path}/task-%a.log", script)
        job = cluster.call("sbatch", *words, **given).strip()
        victim = out / "part.1.jsonl"
        _wait_for(lambda: victim.exists() and victim.read_bytes().count(b"\n") >= 3)
        (pid,) = _writers(victim)
        os.kill(pid, signal.SIGKILL)
        # The killed task has failed; Slurm starts it again, as an operator or a node's loss would have it.
        _wait_for(lambda: not _writers(victim))
        finished = victim.read_bytes().count(b"\n") - 1
        assert finished < sum(1 for path in cohort.iterdir() if path.is_dir()) / 4 + 20
        _wait_for(lambda: not [state for state in cluster.states(job) if state in ("RUNNING", "PENDING")])
        missing = tmi("collect", cohort, *sorted(out.glob("part.*.jsonl")), "--bundle", nano_bundle)
        assert (missing.code, "cases have no result" in missing.err, "1/4" in missing.err) == (2, True, True)
        cluster.call("scontrol", "requeue", f"{job}_1")
        cluster.call("scontrol", "update", f"JobId={job}_1", "StartTime=now")
        _wait_for(lambda: not cluster.states(job), seconds=600)
    assert "are already predicted" in (tmp_path / "task-1.log").read_text()
    _require_collected(cohort, nano_bundle, out)


def _wait_for(condition, *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _writers(path: Path) -> list[int]:
    """Ids of the processes that have a file open."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                links = [os.readlink(link) for link in (folder / "fd").iterdir()]
            except OSError:  # it has ended
                continue
            found += [int(folder.name)] if str(path) in links else []
    return found
