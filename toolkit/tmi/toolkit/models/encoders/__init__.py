"""The encoders: 3D ResNet and slice-wise 2D ResNet for the CT, ViT, BERT, MLP for the radiomics.

Each maps one modality to a feature vector.
"""
