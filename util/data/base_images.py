"""Images and base labels: the samples on which the base learner is trained."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from util.config import Config
from util.data.episodes import BASE_AUGMENTATION, ShuffledPasses, generator
from util.data.lists import list_of
from util.data.loading import SkippingDataset
from util.data.mixed import open_source, with_name
from util.data.source import AnySource
from util.data.tables import Table, load_table
from util.data.transform import EvalTransform
from util.folds import fold_of
from util.runtime.errors import UserError
from util.runtime.progress import timed


class BaseLearnerDataset(SkippingDataset[tuple[Tensor, Tensor]]):
    """Images and base labels of one fold; endless like `EpisodeDataset`.

    Without a `seed` the order is that of `images`; the seed orders every pass, and draws the
    augmentation, which sees base labels. `base_table` is a look-up from a label to the base
    learner's (`Fold.base_table`).
    With `skip`, another sample replaces an unreadable one (`util.data.loading`).
    """

    def __init__(
        self,
        source: AnySource,
        images: Sequence[str],
        transform: EvalTransform,
        base_table: np.ndarray,
        seed: int | None,
        skip: bool = False,
    ) -> None:
        super().__init__(skip)
        self.source, self.images, self.transform = source, images, transform
        self.base_table, self.seed = base_table, seed
        self._passes = None if seed is None else ShuffledPasses(len(images), seed)

    def __len__(self) -> int:
        """Return the samples of one pass."""
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the image id of sample `index` >= 0."""
        return self.images[self._passes(index) if self._passes else index % len(self.images)]

    def make(self, index: int) -> tuple[Tensor, Tensor]:
        """Return sample `index` >= 0: the image (float32 [3,S,S]) and its label (int64 [S,S]).

        Raises `UnreadableFile` if the image or its mask is missing or damaged.
        """
        rng = generator(self.seed or 0, BASE_AUGMENTATION, index)
        image, label = self.source.load(self.name(index))
        tensor, base = self.transform(image, self.base_table[label], rng)
        return tensor, base.long()


@timed("lists and what is on disk")
def open_base_images(
    cfg: Config, subset: str, transform: EvalTransform, seed: int | None
) -> tuple[BaseLearnerDataset, list[str]]:
    """Open the images of `list_base_images` as samples.

    Returns a line, too, for each reason why something is not used. Raises `UserError` if data is
    missing or broken.
    """
    data, source = cfg.Data, open_source(cfg.Data, subset)
    table = load_table(source, data.list_dir)
    images, report = list_base_images(table, cfg, subset, source)
    skip, numbers = subset == "train" and data.broken == "skip", fold_of(data).base_table()
    return BaseLearnerDataset(source, images, transform, numbers, seed, skip), report


def list_base_images(
    table: Table, cfg: Config, subset: str, source: AnySource
) -> tuple[list[str], list[str]]:
    """Return the images on which a base learner is trained ('train') or validated ('val').

    These are all images of the subset, in which novel objects are background, as in BAM; for
    training with `Base.train_list: fold` those of the fold's training list. Returns a line, too,
    for each reason why something is not used. Raises `UserError` if images are missing.
    """
    data, images = cfg.Data, list(table)
    if subset == "train" and cfg.Base.train_list == "fold":
        images = list_of(table, data, "train")[0].images
    listed = images
    report = []
    for name, part in source.parts.items():
        if part.data_set == "custom":
            report += with_name(name, part.unused())
    images, left_out = source.find_images(images, data.missing)
    report += left_out
    if listed and not images:
        places = ", ".join(str(part.images) for part in source.parts.values())
        what = f"{places}: has none of the {len(listed)} listed images, {listed[0]} first"
        raise UserError(f"{what}; unpack them, or check Data.data_root")
    fold = fold_of(data)
    if subset == "train" and not any(c in table[i] for i in images for c in fold.base):
        places = ", ".join(str(part.masks) for part in source.parts.values())
        what = f"{places}: none of the {len(images)} masks has a pixel of a base class"
        names = ", ".join(fold.names[c - 1] for c in fold.base)
        raise UserError(f"{what} ({names}); label such objects, or check the masks' numbers")
    return images, report
