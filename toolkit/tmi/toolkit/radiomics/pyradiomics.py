"""The one place that imports pyradiomics, and keeps it quiet.

pyradiomics writes warnings to standard error, and numpy warns inside it where a matrix is empty; neither says anything
that the missing values of the result do not. Both are silenced only while it works, so that a program which logs
pyradiomics itself keeps its settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tmi.toolkit.compute.quiet import quiet
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.radiomics.settings import PYRADIOMICS_VERSION, SETTINGS


@contextmanager
def pyradiomics_quiet() -> Iterator[None]:
    """No log records of pyradiomics, no Python and numpy warnings, inside the block."""
    with quiet(loggers=["radiomics"]), np.errstate(all="ignore"):
        yield


def load() -> Any:
    """The pyradiomics package.

    Raises:
        UnavailableError: it, or something it needs, is not installed or does not load.
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
            "pyradiomics is installed but does not load",
            fix="compile pyradiomics 3.0.1 against the installed numpy: "
            "pip install --no-binary :all: --no-build-isolation --force-reinstall --no-deps pyradiomics==3.0.1",
        ) from error
    return radiomics


def version() -> str:
    """Version of the installed pyradiomics, without a leading v.

    Raises:
        UnavailableError: as `load`.
    """
    return str(load().__version__).removeprefix("v")


def is_pinned() -> bool:
    """Whether the installed version is the one that everything here was checked against."""
    return version() == PYRADIOMICS_VERSION


def reference_extractor() -> Any:
    """An extractor of pyradiomics, with `SETTINGS`.

    Built call by call: handing it the dict makes it load a validator that uses a module loader which newer Pythons
    have dropped.
    """
    package = load()
    extractor = package.featureextractor.RadiomicsFeatureExtractor(**SETTINGS["setting"])
    extractor.disableAllImageTypes()
    extractor.enableImageTypes(**SETTINGS["imageType"])
    extractor.disableAllFeatures()
    extractor.enableFeaturesByName(**SETTINGS["featureClass"])
    return extractor
