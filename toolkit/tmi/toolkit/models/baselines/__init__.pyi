from .hfbsurv import HfbsurvFusion as HfbsurvFusion
from .mmd import MmdFusion as MmdFusion
from .mmd import MmdOutput as MmdOutput
from .simpleff import SimpleFfFusion as SimpleFfFusion
from .simpleff import SliceFeatures as SliceFeatures
