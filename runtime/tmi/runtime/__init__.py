"""The torch-free runtime: bundles, engines, the fold ensemble and the predictor.

Public names are imported on first access, so that `import tmi.runtime.engines.registry` stays light::

    from tmi.runtime import Predictor

    with Predictor.open("bundle") as predictor:
        results = predictor.predict(["case_dir"])
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
