from .backend import TritonPythonModel as TritonPythonModel
from .repository import GRAPH_BACKENDS as GRAPH_BACKENDS
from .repository import RepositorySettings as RepositorySettings
from .repository import write_repository as write_repository
