"""Cases: load, check, import and make them; torch is not needed.

    from tmi.toolkit import check_case, import_case, load_case

    imported = import_case("cohort/P001", ct="dicom/", mask="segmentation.dcm", clinical="clinical.json")
    case = load_case("cohort/P001")
    for issue in check_case(case):
        print(issue)

The public names are imported on first access.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
