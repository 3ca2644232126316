"""DICOM readers: headers, series, slice geometry, CT volumes, SEG and RTSTRUCT masks.

No message contains the value of a patient's DICOM element.
"""
