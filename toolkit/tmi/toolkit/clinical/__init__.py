"""Clinical records: schema, units, validated reading, rendering as text, tokenizer.

The schema is a data file, so a cohort of another disease can supply its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
