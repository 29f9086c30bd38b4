"""The three ways in which the published system resizes, each under one name.

All take `(x [N,C,h,w], size=(H, W))`. The first aligns corners, the second does not (method:
"bilinear(AC)" and "bilinear"); masks that must stay 0/1 are resized `nearest`.
"""

from functools import partial

from mmseg.ops import resize

bilinear_ac = partial(resize, mode="bilinear", align_corners=True, warning=False)
bilinear = partial(resize, mode="bilinear", align_corners=False, warning=False)
nearest = partial(resize, mode="nearest", warning=False)
