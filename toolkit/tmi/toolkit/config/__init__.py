"""The frozen configuration of a run: its schema, the presets, `--set` overrides and `tmi.toml`.

Every setting is a field with a docstring, validated on construction.
"""
