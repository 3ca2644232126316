"""DICOM: headers, series, geometry, CT volumes, SEG and RTSTRUCT masks.

Values of patients never appear in a message.
"""
