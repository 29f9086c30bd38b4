"""Photographs to try a model on, without a download: they come with the package gradio.

Four show animals, one a tower. No data set here has the class "cheetah":

    from util.predict import Example, Predictor, examples

    predictor.add_class("cheetah", Example(examples.photograph("cheetah1"), mask=examples.MASK))
    predictor.predict(examples.photograph("cheetah2")).mask

This repository holds none of the photographs, only boxes and one mask that were drawn for it.
"""

from importlib.util import find_spec
from pathlib import Path

from util.predict.example import Box
from util.runtime.errors import UserError

MASK = Path(__file__).with_name("cheetah1.png")
"""A mask of the cheetah in the photograph "cheetah1": 1 on the animal, else 0 (256 x 256)."""

BOXES = {
    "cheetah": Box(82, 117, 380, 238),
    "cheetah1": Box(24, 32, 245, 256),
    "cheetah2": Box(23, 76, 718, 761),
    "lion": Box(4, 4, 189, 256),
    "tower": Box(35, 73, 360, 600),
}
"""The photographs by name, each with a box around its object, in pixels."""


def photograph(name: str) -> Path:
    """Return the file of a photograph, one of the names of `BOXES`.

    Raises `UserError` if there is no such name, or if the installed gradio does not hold the file.
    """
    if name not in BOXES:
        raise UserError(f"photograph {name}: unknown; the names are {', '.join(BOXES)}")
    spec = find_spec("gradio")  # found without importing it, which takes seconds
    places = spec.submodule_search_locations if spec else None
    for folder in places or []:
        for part in ("media_assets/images", "test_data"):
            path = Path(folder, part, f"{name}.jpg")
            if path.is_file():
                return path
    remedy = "pip install -r requirements-app.txt"
    raise UserError(f"photograph {name}: gradio holds no such file; {remedy}")
