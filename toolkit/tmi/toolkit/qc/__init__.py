"""Checks of a case before it is used: images, Hounsfield units, mask, record, features; and repairs.

Each check has a code, a severity and a fix; `check_registry` lists them all.
"""
