"""The networks that TMI-CLNet is compared with: SimpleFF, HFBSurv, MMD.

Sources and differences are in docs/systems.md.
"""
