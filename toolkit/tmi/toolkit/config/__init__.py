"""Configuration of a run as frozen dataclasses: schema, presets, `--set` overrides, and the project file `tmi.toml`.

Every setting is a documented field and is validated on construction.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
