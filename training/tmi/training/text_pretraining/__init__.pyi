from .checkpoint import write_encoder as write_encoder
from .pretraining import PretrainConfig as PretrainConfig
from .pretraining import pretrain as pretrain
from .synthetic_records import value_at_position as value_at_position
