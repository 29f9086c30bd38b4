"""Pictures of the page: uploads, the painted mask, and examples from the validation data."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from util.data.image_io import UnreadableFile, read_image, read_label, require_sound
from util.data.lists import fold_list
from util.data.mixed import open_source
from util.data.tables import build_table
from util.evaluate.visualize import overlay
from util.folds import fold_of
from util.predict.example import Box, Example
from util.predict.examples import BOXES, MASK, photograph
from util.predict.output import reduce_size
from util.predict.predictor import Predictor
from util.runtime.errors import UserError

MAX_PIXELS = 50_000_000  # of an upload
SIDE = 1024  # pixels of the longer side; larger images are reduced to it
MAX_EXAMPLES = 5
LOOKED_AT = 2000  # validation images, for examples; VOC has 1,449
PAINT_COLOR, PAINT_OPACITY = "#ff3b30", 0.6
KINDS = OBJECT, BOX, POINTS = "the object itself", "a box around it", "points on it"
"""What the paint covers. A click with the brush is a point."""


@dataclass(frozen=True)
class MarkedImage:
    """The support of a visitor, kept in their session.

    Attributes:
        image: RGB (uint8 [H,W,3]).
        mask: the object (bool [H,W]): an example's mask; empty for an upload.
    """

    image: np.ndarray
    mask: np.ndarray

    def drawn(self) -> np.ndarray:
        """Return the image with its mask in color (uint8 [H,W,3])."""
        return overlay(self.image, self.mask.astype(np.uint8))


@dataclass(frozen=True)
class PageExample:
    """A support and queries of one novel class, from the validation data of the checkpoint.

    Attributes:
        support: an image with the mask of the class.
        queries: other images of the class (uint8 [H,W,3] each).
    """

    support: MarkedImage
    queries: list[np.ndarray]


def open_upload(path: str | Path, name: str = "") -> np.ndarray:
    """Read an uploaded file, upright (uint8 [H,W,3], RGB).

    Raises `UserError`, which calls it `name` or else by its file, if it is no image, or too large.
    """
    name = name or Path(path).name
    try:
        return read_image(path, MAX_PIXELS)
    except UnreadableFile as error:
        raise UserError(str(error).replace(str(path), name, 1)) from None


def require_picture(source: str | bytes, name: str, limit: int) -> None:
    """Require that a file, or its content, is a picture of at most `limit` pixels.

    Its pixels are not decoded. Raises `UserError`, which calls it `name`.
    """
    path, content = (name, source) if isinstance(source, bytes) else (source, None)
    try:
        require_sound(path, content, limit)
    except UnreadableFile as error:
        raise UserError(str(error).replace(path, name, 1)) from None


def painted_mask(support: MarkedImage, layers: list[np.ndarray]) -> np.ndarray:
    """Return what is marked on the support, by its example or with the brush (bool [H,W]).

    `layers` are those of the image editor, RGBA (uint8 [H,W,4] each). Raises `UserError` if nothing
    is marked.
    """
    mask = support.mask.copy()
    for layer in layers:
        if layer.shape[:2] != mask.shape:
            raise UserError("The painting does not fit its image: upload the support again")
        mask |= layer[..., 3] > 255 * PAINT_OPACITY / 2
    if not mask.any():
        raise UserError("Nothing is painted on the support: paint over the object, or around it")
    return mask


def bounding_box(mask: np.ndarray) -> Box:
    """Return the smallest box around the True pixels of a mask (bool [H,W])."""
    ys, xs = np.nonzero(mask)
    return Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


def dab_centers(mask: np.ndarray) -> list[tuple[float, float]]:
    """Return a point (x, y) in each separate part of a mask (bool [H,W]), near its center."""
    count, parts, _, centers = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    points = []
    for part, center in zip(range(1, count), centers[1:], strict=True):
        own = np.argwhere(parts == part)[:, ::-1]
        x, y = own[np.square(own - center).sum(1).argmin()]  # the center itself may lie outside
        points.append((float(x), float(y)))
    return points


def marked_example(support: MarkedImage, layers: list[np.ndarray], kind: str) -> Example:
    """Return the labeled example that a visitor has painted; `kind` is one of `KINDS`.

    `layers` are those of `painted_mask`. Raises `UserError` as that does.
    """
    mask = painted_mask(support, layers)
    if kind == BOX:
        return Example(support.image, box=bounding_box(mask))
    if kind == POINTS:
        return Example(support.image, points=dab_centers(mask))
    return Example(support.image, mask=mask)


def find_examples(predictor: Predictor, data_root: Path | None) -> list[PageExample]:
    """Return a support and two queries of each novel class, and photographs of cheetahs.

    Novel classes, up to `MAX_EXAMPLES`, come from the first `LOOKED_AT` validation images of the
    checkpoint's data set in `data_root`. Without it there are only the photographs. No path of the
    checkpoint's config is used, since the checkpoint may be a stranger's. Raises `UserError` if the
    folder does not hold that data set.
    """
    data, cheetahs = predictor.cfg.Data, _cheetahs()
    if data_root is None or data.mix:
        return [cheetahs]
    data = replace(data, data_root=str(data_root), cache="")
    source = open_source(data, "val")
    table = build_table(source, source.image_ids()[:LOOKED_AT])
    listed = fold_list(table, fold_of(data), "val", data.min_pixels)
    examples: list[PageExample] = []
    on_disk = source.images_on_disk()
    for class_id, names in listed.by_class.items():
        names = [name for name in names if name in on_disk]
        if len(names) > 2 and len(examples) < MAX_EXAMPLES:
            image, label = source.load(names[0], class_id)
            mask = reduce_size(label, SIDE, cv2.INTER_NEAREST) == class_id
            support = MarkedImage(reduce_size(image, SIDE), mask)
            queries = [reduce_size(source.load(n)[0], SIDE) for n in names[1:3]]
            examples.append(PageExample(support, queries))
    return [*examples, cheetahs]


def _cheetahs() -> PageExample:
    photographs = {name: reduce_size(open_upload(photograph(name)), SIDE) for name in BOXES}
    mask = reduce_size(read_label(MASK), SIDE, cv2.INTER_NEAREST) == 1
    support = MarkedImage(photographs.pop("cheetah1"), mask)
    return PageExample(support, list(photographs.values()))
