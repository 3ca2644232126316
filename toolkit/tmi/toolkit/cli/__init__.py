"""Command line of `tmi`: the table of all commands, and the commands that need only the toolkit.

Only command modules print or exit. They import heavy packages inside their functions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
