"""Import pyradiomics and silence its warnings; no other module imports it.

pyradiomics writes warnings to standard error, and numpy warns inside it if a matrix is empty. Both only repeat what the
missing values of the result show. They are silenced only during a call, so that the logging settings of the calling
program are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.compute.third_party import library_call
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.radiomics.settings import PYRADIOMICS_VERSION, SETTINGS


@contextmanager
def pyradiomics_quiet() -> Iterator[None]:
    """Silence pyradiomics' log records and the warnings of Python and numpy inside the block."""
    with quiet(loggers=["radiomics"]), np.errstate(all="ignore"):
        yield


def rejecting(library: str) -> AbstractContextManager[None]:
    """Reject the case (`radiomics-failed`) if a library's call in the block raises; the caller adds the case id."""
    return library_call(
        library,
        code="radiomics-failed",
        task="extract the radiomics of CT and mask",
        fix="check the CT under the mask for values that are no Hounsfield units, such as the limits of int16 "
        "(-32768, 32767), or give the case a radiomics.csv",
    )


def load() -> Any:
    """Import and return the pyradiomics package.

    Raises:
        UnavailableError: pyradiomics or one of its dependencies is not installed or fails to load.
    """
    try:
        with quiet():
            import radiomics
            import radiomics.featureextractor
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"extracting radiomics needs the package {error.name}, which is not installed",
            fix="pip install 'tmi-clnet[radiomics]', or give the case a radiomics.csv",
        ) from error
    except ImportError as error:
        raise UnavailableError(
            "pyradiomics is installed but fails to load",
            fix="compile pyradiomics 3.0.1 against the installed numpy: "
            "pip install --no-binary :all: --no-build-isolation --force-reinstall --no-deps pyradiomics==3.0.1",
        ) from error
    return radiomics


def version() -> str:
    """Return the version of the installed pyradiomics, without a leading v.

    Raises:
        UnavailableError: as `load`.
    """
    return str(load().__version__).removeprefix("v")


def is_pinned() -> bool:
    """Return whether the installed version is the one that the fast path was validated with."""
    return version() == PYRADIOMICS_VERSION


def reference_extractor() -> Any:
    """Return pyradiomics' feature extractor, configured with `SETTINGS`.

    The settings are passed by separate calls: passing the whole dictionary makes pyradiomics load a validator that
    depends on a module loader removed from newer Python versions.
    """
    package = load()
    extractor = package.featureextractor.RadiomicsFeatureExtractor(**SETTINGS["setting"])
    extractor.disableAllImageTypes()
    extractor.enableImageTypes(**SETTINGS["imageType"])
    extractor.disableAllFeatures()
    extractor.enableFeaturesByName(**SETTINGS["featureClass"])
    return extractor
