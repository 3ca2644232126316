"""Explanations of a prediction: XGrad-CAM maps, attributions, attention, and sanity checks of the maps.

Needs torch and the eager weights of a run or bundle.
"""
