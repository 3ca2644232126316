"""A trap for programs that contact other hosts: it records and fails every name look-up and internet connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOOK = """
import os, sys

LOCAL = ("localhost", "127.0.0.1", "::1", "", None)

def record(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments
    else:
        return
    host = address[0] if isinstance(address, tuple) else None  # a local socket's address is a path
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    if host not in LOCAL:
        with open(os.environ["TRAP_FILE"], "a") as stream:
            stream.write(f"{event} {host}\\n")
        raise OSError(f"the trap stopped {event} of {host}")

sys.addaudithook(record)
"""
"""A `sitecustomize.py`: traps what Python code looks up."""

LIBRARY = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int trapped(const char *function, const char *host) {
    char line[512];
    const char *file = getenv("TRAP_FILE");
    int size, handle;
    if (host == NULL || !strcmp(host, "") || !strcmp(host, "localhost") || !strcmp(host, "127.0.0.1")
        || !strcmp(host, "::1"))
        return 0;
    size = snprintf(line, sizeof line, "%s %s\n", function, host);
    handle = file ? open(file, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (handle >= 0) {
        if (write(handle, line, size) < 0) abort();
        close(handle);
    }
    return 1;
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    static int (*original)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    extern void *dlsym(void *, const char *);
    if (trapped("getaddrinfo", host)) return EAI_AGAIN;
    if (!original) original = dlsym((void *)-1l, "getaddrinfo");  /* RTLD_NEXT */
    return original(host, service, hints, result);
}

struct hostent *gethostbyname(const char *host) {
    (void)trapped("gethostbyname", host);
    return NULL;
}
"""
"""A library for `LD_PRELOAD`: traps what native code looks up."""


@dataclass(frozen=True)
class NetworkTrap:
    """An environment for programs, in which look-ups are recorded."""

    environment: dict[str, str]
    """Variables to add to those of a program."""
    record: Path
    """File of the look-ups, one a line."""
    home: Path
    """Empty home folder of the programs."""
    native: bool
    """Whether look-ups of native code are recorded too; needs a C compiler."""

    def lookups(self) -> list[str]:
        """What was looked up since the trap was made."""
        return self.record.read_text().splitlines() if self.record.exists() else []


def make_network_trap(folder: Path) -> NetworkTrap:
    """Make a trap in an empty folder."""
    home, hooks = folder / "home", folder / "hooks"
    home.mkdir(parents=True)
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK)
    environment = {"TRAP_FILE": str(folder / "lookups"), "PYTHONPATH": str(hooks), "HOME": str(home)}
    compiler = shutil.which("cc") if sys.platform == "linux" else None
    if compiler is not None:
        source, library = folder / "trap.c", folder / "trap.so"
        source.write_text(LIBRARY)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment["LD_PRELOAD"] = str(library)
    return NetworkTrap(environment, folder / "lookups", home, compiler is not None)


def without_signs_of_tests(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment without what packages take for a test or a CI run, in which some of them report nothing."""
    signs = ("CI", "PYTEST", "GITHUB_", "ORT_DISABLE", "MLFLOW_", "HF_HUB", "DO_NOT_TRACK", "PYTHONPATH")
    return {name: text for name, text in (environment or os.environ).items() if not name.startswith(signs)}
