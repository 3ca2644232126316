"""From hospital files to a cohort: DICOM series, SEG and RTSTRUCT masks, NIfTI/NRRD, tables.

What it writes is the case format of `tmi.toolkit.cases`; what it cannot read safely it rejects.
"""
