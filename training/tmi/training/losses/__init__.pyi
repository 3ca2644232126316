from .total import Loss as Loss
from .total import task_loss as task_loss
from .total import total_loss as total_loss
