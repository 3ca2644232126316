"""Bundle writer: staged folder, TensorRT engines added to a bundle, model card, software bill of materials.

Writing is atomic: the bundle's folder appears complete or not at all.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
