"""Typed errors: texts, exit codes and pickling."""

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
def test_error_type_has_documented_exit_code(kind):
    """Each error type has the exit code of the documentation."""
    assert int(kind.exit_code) == CODES[kind]
    assert kind.exit_code in ExitCode


def test_error_text_names_the_case():
    """The text starts with the case id if the error has one."""
    error = InputRejectedError("liver.nii.gz is missing", fix="put it there", code="mask-missing")
    assert str(error) == "liver.nii.gz is missing"
    assert str(error.for_case("P1")) == "case P1: liver.nii.gz is missing"


@pytest.mark.parametrize("kind", CODES)
def test_error_survives_pickling(kind):
    """Type, text and all attributes survive pickling."""
    extra = {"code": "mask-grid"} if kind is InputRejectedError else {}
    error = kind("what is wrong", fix="how to fix it", **extra)
    if kind is not ParityError:
        error.for_case("P7")
    restored = pickle.loads(pickle.dumps(error))
    assert type(restored) is kind
    assert (str(restored), restored.args, vars(restored)) == (str(error), error.args, vars(error))
