"""How a fold is optimised beyond Adam at a constant rate; each part is off unless it is configured.

Schedule of the learning rate, average of the weights, training of the encoders alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
