from .bundle.context import ExportSettings as ExportSettings
from .bundle.writer import export as export
