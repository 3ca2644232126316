"""Configuration of a run as frozen dataclasses: schema, presets, `--set` overrides, and the project file `tmi.toml`.

Every setting is a documented field and is validated on construction.
"""
