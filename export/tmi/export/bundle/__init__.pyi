from .engine_builder import build_bundle as build_bundle
from .request_checks import check_request as check_request
from .writer import export_run as export_run
