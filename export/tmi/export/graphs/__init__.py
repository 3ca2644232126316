"""From a fold's network to graph files: partition at the encoders, ONNX and TorchScript writers.

`registry` lists the kinds of artefact that an export can write.
"""
