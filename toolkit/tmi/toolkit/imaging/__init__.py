"""CT and mask volumes: geometry, NIfTI reading slab by slab, resampling to the network's grid.

Arrays are [D, H, W] in one patient orientation, spacing in mm, values in Hounsfield units.
"""
