"""SimpleITK and PyWavelets, the libraries of the extraction: whether they are installed, and what a failure means."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.compute.third_party import library_call
from tmi.toolkit.errors import UnavailableError

MODULES = {"SimpleITK": "SimpleITK", "pywt": "PyWavelets"}
"""Module -> distribution that installs it."""
EXTRACTION_FIX = (
    "check the CT under the mask for values that are no Hounsfield units, such as the limits of int16 "
    "(-32768, 32767), or give the case a radiomics.csv"
)
"""How to fix a case whose features cannot be extracted."""


def rejecting(library: str) -> AbstractContextManager[None]:
    """Reject the case (`radiomics-failed`) if a library's call in the block raises; the caller adds the case id."""
    return library_call(
        library, code="radiomics-failed", task="extract the radiomics of CT and mask", fix=EXTRACTION_FIX
    )


def require_libraries() -> None:
    """Import the libraries, so that a missing one is reported before any work.

    Raises:
        UnavailableError: one is not installed or fails to load.
    """
    for module, distribution in MODULES.items():
        try:
            with quiet():
                importlib.import_module(module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError)
            raise UnavailableError(
                f"extracting radiomics needs the package {distribution}, which "
                + ("is not installed" if missing else "is installed but fails to load"),
                fix="pip install 'tmi-clnet[radiomics]', or give the case a radiomics.csv",
            ) from error
