"""Images and base labels: what the base learner is trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from util.config import Config
from util.data.episodes import Passes, generator
from util.data.lists import fold_list
from util.data.loading import Skipping
from util.data.source import Source, open_source
from util.data.tables import load_table
from util.data.transform import Transform
from util.folds import fold_of
from util.runtime.errors import UserError
from util.runtime.progress import timed

_AUGMENT = 3  # random stream of the augmentation; episodes.py holds 0 to 2


class BaseLearnerDataset(Dataset):
    """Images and base labels of one fold; endless, as `EpisodeDataset` is.

    Args:
        source: the data.
        images: ids, such as `FoldList.images`.
        transform: `BaseTransform` in training, `EvalTransform` in validation.
        table: look-up from a label to the base learner's (`Fold.base_table`).
        seed: shuffles every pass and feeds the augmentation; None keeps the order of `images`.
        skip: another sample in the place of one that cannot be read (`util.data.loading`).
    """

    def __init__(
        self,
        source: Source,
        images: Sequence[str],
        transform: Transform,
        table: np.ndarray,
        seed: int | None,
        skip: bool = False,
    ) -> None:
        self.source, self.images, self.transform = source, images, transform
        self.base_table, self.seed = torch.from_numpy(table), seed
        self.skipping = Skipping(skip)
        self._passes = None if seed is None else Passes(len(images), seed)

    def __len__(self) -> int:
        """Returns the samples of one pass."""
        return len(self.images)

    def name(self, index: int) -> str:
        """Returns the id of sample `index` >= 0."""
        return self.images[self._passes(index) if self._passes else index % len(self.images)]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns sample `index` >= 0: the image (float32 [3,S,S]) and its label (int64 [S,S])."""
        return self.skipping(self._sample, index)

    def _sample(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.source.load(self.name(index))
        rng = generator(self.seed or 0, _AUGMENT, index)
        image, label = self.transform(image, label, rng)
        return image, self.base_table[label.long()].long()


@timed("lists and what is on disk")
def open_base_images(
    cfg: Config, subset: str, transform: Transform, seed: int | None
) -> tuple[BaseLearnerDataset, list[str]]:
    """Opens the images a base learner is trained ('train') or validated ('val') on.

    Training takes the fold's training list, as BAM does; validation every image of the subset with
    a base class in it.

    Args:
        cfg: as for `open_episodes`; the sizes and ranges come with the transform.
        subset: 'train' or 'val'.
        transform: of the pictures.
        seed: see `BaseDataset`.

    Returns:
        The samples, and a line when images were left out.

    Raises:
        UserError: when data is missing or broken.
    """
    data, source = cfg.Data, open_source(cfg.Data, subset)
    fold, table = fold_of(data), load_table(source, data.list_dir)
    if subset == "train":
        images = fold_list(table, fold, subset, data.min_pixels).images
    else:
        images = [i for i, has in table.items() if not has.keys().isdisjoint(fold.base)]
    report = []
    if data.missing == "skip":
        there = source.images_on_disk()
        kept = [i for i in images if i in there]
        if len(kept) < len(images):
            absent = len(images) - len(kept)
            report.append(f"left out {absent} of {len(images)} listed images: not on disk")
        images = kept
    else:
        source.require(images)
    if not images:
        raise UserError(f"{source.images}: holds none of the listed images; check Data.data_root")
    skip = subset == "train" and data.broken == "skip"
    return BaseLearnerDataset(source, images, transform, fold.base_table(), seed, skip), report
