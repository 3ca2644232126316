"""TensorRT: FP16 conversion and its simulation, mixed-precision search, engine building.

Graphs are typed before they are built, so that their FP16 error is known without a GPU.
"""
