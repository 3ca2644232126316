from .calibration_cases import read_calibration_cases as read_calibration_cases
from .int8_graphs import add_int8_graphs as add_int8_graphs
from .signed_graphs import SIGNED_SUFFIX as SIGNED_SUFFIX
from .signed_graphs import audit_signed_graph as audit_signed_graph
from .signed_graphs import write_signed_graph as write_signed_graph
