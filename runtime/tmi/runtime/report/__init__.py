"""The HTML report of one case: slices with the map, contributions, warnings, evidence of the engine.

One self-contained file without scripts from elsewhere.
"""
