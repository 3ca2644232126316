from .finished_pages import finished_result as finished_result
from .finished_pages import inputs_digest as inputs_digest
from .finished_pages import page_record as page_record
from .pages import CASES as CASES
from .pages import case_page as case_page
from .pages import index_page as index_page
