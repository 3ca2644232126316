from .additions import require_addable as require_addable
from .context import ExportSettings as ExportSettings
from .engine_builder import build_bundle as build_bundle
from .request_checks import check_request as check_request
from .writer import add_to_bundle as add_to_bundle
from .writer import export_run as export_run
