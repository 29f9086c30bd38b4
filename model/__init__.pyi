from .amformer.system import AMFormer, Prediction
from .build import build_model
from .errors import UserError

__all__ = ["AMFormer", "Prediction", "UserError", "build_model"]
