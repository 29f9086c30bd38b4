"""Segment one's own images with a trained model: in Python, from a command, on a page.

    from util.predict import Box, Example, Predictor

    predictor = Predictor.from_checkpoint("exp/demo/split0_lite0/best.pth")
    first, second = Example("a.jpg", mask="a.png"), Example("b.jpg", box=Box(40, 30, 200, 180))
    predictor.add_class("teapot", [first, second])
    result = predictor.predict("query.jpg")
    result.mask  # uint8 [H,W]: 1 where the teapot is, else 0

`predict.py` is the command, `python -m util.predict.app` the page in the browser.

Names are imported when they are first used: torch takes seconds to load, `--help` needs none.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
