from .console import echo as echo
from .console import echo_json as echo_json
from .console import make_console as make_console
from .main import print_error as print_error
