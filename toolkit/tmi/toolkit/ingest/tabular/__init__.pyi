from .cohort_importer import import_table as import_table
from .report import TableReport as TableReport
