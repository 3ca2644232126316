"""Bundle writer: staged folder, TensorRT engines added to a bundle, model card, software bill of materials.

Writing is atomic: the bundle's folder appears complete or not at all.
"""
