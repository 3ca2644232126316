"""Typed errors: their texts, their exit codes, and their way across a process border."""

from __future__ import annotations

import pickle

import pytest

from tmi.runtime.bundle.check_result import ParityError
from tmi.toolkit.errors import DamagedError, ExitCode, InputRejectedError, TmiError, UnavailableError, UsageError

CODES = {
    TmiError: 1,
    UsageError: 2,
    InputRejectedError: 3,
    ParityError: 4,
    UnavailableError: 5,
    DamagedError: 6,
}


@pytest.mark.parametrize("kind", CODES)
def test_every_kind_has_its_documented_exit_code(kind):
    assert int(kind.exit_code) == CODES[kind]
    assert kind.exit_code in ExitCode


def test_the_text_names_the_case_where_there_is_one():
    error = InputRejectedError("liver.nii.gz is missing", fix="put it there", code="mask-missing")
    assert str(error) == "liver.nii.gz is missing"
    assert str(error.for_case("P1")) == "case P1: liver.nii.gz is missing"


@pytest.mark.parametrize("kind", CODES)
def test_an_error_crosses_a_process_border_whole(kind):
    extra = {"code": "mask-grid"} if kind is InputRejectedError else {}
    error = kind("what is wrong", fix="how to mend it", **extra)
    if kind is not ParityError:
        error.for_case("P7")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
