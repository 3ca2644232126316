from .factory import build_model as build_model
from .factory import build_network as build_network
from .factory import encoders as encoders
from .factory import loss_function as loss_function
from .radiomics_pipeline import fit as fit
from .sklearn_arrays import Arrays as Arrays
from .sklearn_arrays import load as load
from .sklearn_arrays import probability as probability
