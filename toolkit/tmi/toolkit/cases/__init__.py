"""Case and cohort format: file names of a case folder, case id, patient, label, and provenance record.

This package locates files; higher layers read their content.
"""
