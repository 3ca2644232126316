from .main import print_error as print_error
