"""The networks: encoders, TMI-CLNet, the baselines, and one registry of what each of them uses.

The only room of the toolkit that imports torch; `registry` itself does not.
"""
