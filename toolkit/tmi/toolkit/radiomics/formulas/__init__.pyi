from .cooccurrence import cooccurrence_features as cooccurrence_features
from .shape import shape_features as shape_features
from .shape_mesh import measure_mesh as measure_mesh
from .sizes import dependence_features as dependence_features
from .sizes import run_length_features as run_length_features
from .sizes import zone_features as zone_features
from .tone_differences import tone_difference_features as tone_difference_features
