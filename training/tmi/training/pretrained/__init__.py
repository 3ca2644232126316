"""Pre-trained weights from files: MedicalNet and Kinetics CT encoders, BERT folders, and a report of what was loaded.

Files are read without executing pickled code.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
