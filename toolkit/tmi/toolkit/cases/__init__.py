"""The case and cohort format: which files a case folder holds, its id, patient, label and provenance.

It finds files; the rooms above read them.
"""
