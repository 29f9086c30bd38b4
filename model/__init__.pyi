from .amformer.system import AMFormer
from .build import build_model
from .errors import UserError
from .prediction import Prediction
from .system import System

__all__ = ["AMFormer", "Prediction", "System", "UserError", "build_model"]
