"""Scores that are numbers: NaN would count as background, and infinity as an object."""

from model import Prediction
from util.runtime.errors import UserError


class NotFinite(UserError):
    """The model's scores of an image are no numbers."""


def require_finite(prediction: Prediction, image: str = "") -> None:
    """Raise `NotFinite`, which begins with a name of the query, if its scores are not finite."""
    if not (prediction.final.isfinite().all() & prediction.prior.isfinite().all()):  # read once
        what = "the scores of these weights are not finite (NaN or infinity)"
        what = f"{image}: {what}" if image else what
        raise NotFinite(f"{what}; name other weights, or set Eval.precision=fp32")
