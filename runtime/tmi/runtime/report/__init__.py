"""HTML report: slices with the map, contributions, warnings and provenance of each case.

Each page is one self-contained file that loads nothing from elsewhere.
"""
