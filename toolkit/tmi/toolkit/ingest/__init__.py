"""Converters from hospital files to case folders: DICOM series, SEG, RTSTRUCT, NIfTI, NRRD, MetaImage, spreadsheets.

The output follows the case format of `tmi.toolkit.cases`. Input that cannot be read reliably is rejected.
"""
