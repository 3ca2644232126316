"""The encoders: 3D ResNet and slice-wise 2D ResNet for the CT, ViT, BERT, MLP for the radiomics.

Each maps one modality to a feature vector.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
