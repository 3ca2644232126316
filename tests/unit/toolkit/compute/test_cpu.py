"""Waiting of OpenMP's threads: set by the command, unless the environment sets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tmi.toolkit.compute.cpu import SPIN_COUNT, WAIT_VARIABLES, limit_spinning


def test_threads_sleep_soon():
    """Without a setting the count is limited."""
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": SPIN_COUNT}


@pytest.mark.parametrize("name", WAIT_VARIABLES)
def test_setting_of_the_user_holds(name):
    """A setting of the environment is left as it is."""
    environment = {name: "x"}
    limit_spinning(environment)
    assert environment == {name: "x"}


def test_command_sets_the_count_before_torch():
    """Every `tmi` command sets the count while torch, which reads it at its import, is not imported."""
    code = (
        "import atexit, os, sys; from tmi.toolkit.cli.main import main; sys.argv = ['tmi', '--version']\n"
        "atexit.register(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)); main()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == f"{SPIN_COUNT} False"
