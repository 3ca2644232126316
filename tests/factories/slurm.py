"""A Slurm of one controller and one node on loopback, with its own munge key, ports and folders."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "squeue", "scontrol")
SECONDS = 60


def missing_programs() -> list[str]:
    """Programs of Debian's packages slurm-wlm and munge that are not installed."""
    return [name for name in PROGRAMS if _which(name) is None]


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Slurm:
    """A running controller and node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, program: str, *words: str, **environment: str) -> str:
        """Run a client program; returns its output."""
        command = [str(_which(program)), *words]
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout

    def states(self, job: str) -> list[str]:
        """State of each task of a job that has not ended."""
        return self.call("squeue", "--noheader", "--array", "--jobs", job, "--format", "%T").split()


@contextmanager
def slurm(folder: Path, *, cores: int) -> Iterator[Slurm]:
    """Start munge, controller and node; they end with the block."""
    folder.mkdir(mode=0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(2)
    (folder / "slurm.conf").write_text(
        "\n".join(
            (
                "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", "SlurmUser=root", "AuthType=auth/munge",
                f"AuthInfo=socket={folder / 'munge.socket'}", f"SlurmctldPort={ports[0]}", f"SlurmdPort={ports[1]}",
                f"StateSaveLocation={folder / 'state'}", f"SlurmdSpoolDir={folder / 'spool'}",
                f"SlurmctldPidFile={folder / 'slurmctld.pid'}", f"SlurmdPidFile={folder / 'slurmd.pid'}",
                f"SlurmctldLogFile={folder / 'slurmctld.log'}", f"SlurmdLogFile={folder / 'slurmd.log'}",
                "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "SelectType=select/cons_tres",
                "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny", "ReturnToService=2", "MpiDefault=none",
                "SchedulerParameters=sched_interval=1,batch_sched_delay=0",
                f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=4000",
                f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4", "",
            )
        )
    )  # fmt: skip
    key = folder / "munge.key"
    subprocess.run([str(_which("mungekey")), "--create", "--keyfile", str(key)], check=True)
    key.chmod(0o400)
    commands: Sequence[Sequence[str]] = (
        (
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder / 'munge.socket'}",
            f"--pid-file={folder / 'munged.pid'}", f"--seed-file={folder / 'munged.seed'}",
            f"--log-file={folder / 'munged.log'}",
        ),
        ("slurmctld", "-D", "-c"),
        ("slurmd", "-D", "-c", "-N", host),
    )  # fmt: skip
    running = Slurm(folder)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for program, *words in commands:
            log = (folder / f"{program}.out").open("wb")
            with log:
                processes.append(
                    subprocess.Popen(
                        [str(_which(program)), *words], env=running.environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
            if program == "munged":
                _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        _wait_for(lambda: _is_idle(running), folder)
        yield running
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_idle(running: Slurm) -> bool:
    done = subprocess.run(
        [str(_which("sinfo")), "--noheader", "--format", "%t"],
        env=running.environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.stdout.strip() == "idle"


def _wait_for(condition: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.out")))
        time.sleep(0.1)
