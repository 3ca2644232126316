"""Writing a bundle: staged folder, engines added to one, model card, bill of materials.

The folder appears as a whole or not at all.
"""
