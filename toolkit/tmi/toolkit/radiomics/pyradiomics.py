"""pyradiomics, the reference that tests compare the extraction with; the extraction itself does not need it.

pyradiomics writes warnings to standard error, and numpy warns inside it if a matrix is empty. Both only repeat what the
missing values of the result show. They are silenced only during a call, so that the logging settings of the calling
program are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.radiomics.settings import SETTINGS

INSTALL = (
    "pip install numpy setuptools wheel versioneer && "
    "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps pyradiomics==3.0.1 && "
    "pip install SimpleITK PyWavelets pykwalify six docopt"
)
"""How to install it: 3.0.1 does not name what its build needs, and must be compiled against the installed numpy."""


@contextmanager
def pyradiomics_quiet() -> Iterator[None]:
    """Silence pyradiomics' log records and the warnings of Python and numpy inside the block."""
    with quiet(loggers=["radiomics"]), np.errstate(all="ignore"):
        yield


def load() -> Any:
    """Import and return the pyradiomics package.

    Raises:
        UnavailableError: pyradiomics or one of its dependencies is not installed or fails to load.
    """
    try:
        with quiet():
            import radiomics
            import radiomics.featureextractor
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise UnavailableError(
            f"comparing with pyradiomics needs the package {error.name}, which is not installed"
            if missing
            else "pyradiomics is installed but fails to load",
            fix=INSTALL,
        ) from error
    return radiomics


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
