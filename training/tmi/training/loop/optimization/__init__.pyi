from .encoder_heads import EncoderHeads as EncoderHeads
from .learning_rate import is_scheduled as is_scheduled
from .learning_rate import learning_rate_factor as learning_rate_factor
from .weight_average import averaged_copy as averaged_copy
