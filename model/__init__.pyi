from .amformer.system import AMFormer, Prediction, build_model
from .errors import UserError

__all__ = ["AMFormer", "Prediction", "UserError", "build_model"]
