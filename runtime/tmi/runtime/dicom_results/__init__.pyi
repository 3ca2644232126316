from .objects import Origin as Origin
from .objects import require_root as require_root
from .source import SourceSeries as SourceSeries
from .source import read_source as read_source
from .writer import write_dicom_results as write_dicom_results
