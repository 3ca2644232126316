from .additions import require_addable as require_addable
from .context import ExportSettings as ExportSettings
from .engine_builder import build_bundle as build_bundle
from .request_checks import INT8_PRECISION as INT8_PRECISION
from .request_checks import check_request as check_request
from .request_checks import with_int8 as with_int8
from .writer import add_to_bundle as add_to_bundle
from .writer import export_run as export_run
