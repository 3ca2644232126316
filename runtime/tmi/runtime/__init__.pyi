__version__: str

from .bundle.reader import Bundle as Bundle
from .bundle.reader import open_bundle as open_bundle
from .explanation.case_explanation import CaseExplanation as CaseExplanation
from .explanation.case_explanation import explain as explain
from .serving.pipeline import InferencePipeline as InferencePipeline
from .serving.predictor import Predictor as Predictor
from .serving.prefetching import CaseArrays as CaseArrays
from .serving.results import FoldPrediction as FoldPrediction
from .serving.results import Issue as Issue
from .serving.results import Prediction as Prediction
from .serving.results import RejectedCase as RejectedCase
