from .pages import CASES as CASES
from .pages import case_page as case_page
from .pages import index_page as index_page
