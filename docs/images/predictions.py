"""Cut the README's picture out of `episodes.png`, which a test of the demo draws.

    NET=lite0 sh test.sh split0 demo 0 Eval.visualize=12
    python docs/images/predictions.py exp/demo/split0_lite0/episodes.png

It keeps every fourth of the twelve evenly spread episodes, and five of the eight columns.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = (0, 1, 3, 7, 2)  # support, query, prior, final, ground truth
EPISODES = 12

picture = np.asarray(Image.open(sys.argv[1]))
height, width = picture.shape[0] // EPISODES, (picture.shape[1] - 3) // 8
rows = [
    np.hstack([picture[y : y + height, 3 + c * width : 3 + (c + 1) * width] for c in COLUMNS])
    for y in range(0, EPISODES * height, 4 * height)
]
Image.fromarray(np.vstack(rows)).save(Path(__file__).with_suffix(".png"), optimize=True)
