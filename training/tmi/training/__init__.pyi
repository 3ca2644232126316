from .loop.cross_validation import RunResult as RunResult
from .loop.cross_validation import TrainingCallbacks as TrainingCallbacks
from .loop.cross_validation import train as train
