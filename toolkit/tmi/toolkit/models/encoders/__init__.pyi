from .bert import TextEncoder as TextEncoder
from .mlp import RadiomicsEncoder as RadiomicsEncoder
from .resnet2d import SliceEncoder as SliceEncoder
from .resnet2d import create_resnet2d as create_resnet2d
from .resnet3d import CtEncoder as CtEncoder
from .vit import VitEncoder as VitEncoder
