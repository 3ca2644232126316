"""Quality checks of a case (images, Hounsfield units, mask, clinical record, radiomics), and repairs.

Each check has a code and a severity, and each finding a fix. `check_registry` lists all checks.
"""
