from .cache import PreparedCache as PreparedCache
from .clinical_features import clinical_inputs as clinical_inputs
from .pipeline import STAGES as STAGES
from .pipeline import PreparedCase as PreparedCase
from .pipeline import prepare_case as prepare_case
from .radiomics_batch import ExtractionOptions as ExtractionOptions
from .radiomics_batch import ExtractionResult as ExtractionResult
from .radiomics_batch import make_tables as make_tables
