"""Export of a finished run as a bundle, as `tmi export` does; needs torch.

    from tmi.export import export

    bundle = export("runs/first", "bundle", engines=("onnx",))

The bundle is written only if every parity check against the trained models passes. The public names are imported on
first access.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
