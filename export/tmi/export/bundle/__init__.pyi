from .engine_builder import build_bundle as build_bundle
from .writer import export_run as export_run
