__version__: str

from .serving.predictor import Predictor as Predictor
from .serving.prefetching import CaseArrays as CaseArrays
from .serving.results import FoldPrediction as FoldPrediction
from .serving.results import Issue as Issue
from .serving.results import Prediction as Prediction
from .serving.results import RejectedCase as RejectedCase
