"""What a prediction rests on: XGrad-CAM maps, attributions, attention, and checks of these maps.

It needs torch and the bundle's eager weights.
"""
