"""Graph files of a run's networks: partition at the encoders, ONNX and TorchScript writers.

`registry` is the table of the artefact kinds that an export can write.
"""
