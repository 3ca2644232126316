from .fusion import Fusion as Fusion
from .fusion import FusionOutput as FusionOutput
from .fusion import feature_widths as feature_widths
from .modality_ablation import SubsetFusion as SubsetFusion
from .model import TmiClnet as TmiClnet
from .tcaf import TripleModalCrossAttention as TripleModalCrossAttention
