"""Evidence that an engine matches the validated model: golden inputs, parity checks, self-test, `verify`.

The export, the start-up of an engine and `tmi verify` run the same checks.
"""
