"""Training of one model for each fold of a cohort, as `tmi train` does; needs torch.

    from tmi.training import train

    result = train("cohort", "runs/first", config="tiny")
    print(result)

The public names are imported on first access.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
