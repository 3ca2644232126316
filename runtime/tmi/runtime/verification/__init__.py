"""Evidence that an engine equals the validated model: golden inputs, parity checks, self-test, `verify`.

The export, the start-up of an engine and `tmi verify` use the same checks.
"""
