"""Episodes as tensors.

The data set is endless: any index >= 0 gives an episode, so a loader runs over a plain range and a
run resumes at any iteration:

    episodes, report = open_episodes(cfg, "train", seed=321)
    loader = DataLoader(episodes, batch_size=8, collate_fn=collate, num_workers=2,
                        sampler=range(done, total), pin_memory=True)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model.constants import IGNORE, IMAGENET_MEAN, IMAGENET_STD
from util.config import Config
from util.data.episodes import EpisodeSampler, Plan
from util.data.lists import available, check_shots, compare, fold_list, list_name
from util.data.loading import Skipping
from util.data.source import Source, open_source
from util.data.tables import load_table
from util.data.transform import (
    EvalTransform,
    FlipTransform,
    TrainTransform,
    Transform,
)
from util.data.weak import annotate
from util.folds import fold_of
from util.runtime.progress import timed


@dataclass(frozen=True)
class Episode:
    """One episode; the fields are those of `EpisodeBatch` without the batch axis."""

    query: Tensor
    query_mask: Tensor
    query_base_mask: Tensor
    support: Tensor
    support_mask: Tensor
    class_index: int
    plan: Plan


@dataclass(frozen=True)
class EpisodeBatch:
    """A batch of episodes.

    Attributes:
        query: query images, normalised, float32 [B,3,S,S].
        query_mask: 1 on the episode's class, 255 where the label is 255, else 0; int64 [B,S,S].
        query_base_mask: labels of the base learner, 0..N and 255; int64 [B,S,S].
        support: support images, float32 [B,K,3,S,S].
        support_mask: as `query_mask`, of the supports; int64 [B,K,S,S].
        class_index: place of the class among the fold's base classes (training) or novel classes
            (validation), from 0; int64 [B].
        plans: the episodes by name.
    """

    query: Tensor
    query_mask: Tensor
    query_base_mask: Tensor
    support: Tensor
    support_mask: Tensor
    class_index: Tensor
    plans: list[Plan]

    def to(self, device: torch.device | str) -> "EpisodeBatch":
        """Returns the batch on a device; asynchronously from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "EpisodeBatch":
        """Returns the batch in pinned memory; DataLoader(pin_memory=True) calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "EpisodeBatch":
        tensors = ((name, value) for name, value in vars(self).items() if name != "plans")
        return replace(self, **{name: change(tensor) for name, tensor in tensors})


def collate(episodes: list[Episode]) -> EpisodeBatch:
    """Makes a batch of episodes; the `collate_fn` of a DataLoader."""
    stacked = {
        name: torch.stack([getattr(e, name) for e in episodes])
        for name in ("query", "query_mask", "query_base_mask", "support", "support_mask")
    }
    return EpisodeBatch(
        **stacked,
        class_index=torch.tensor([e.class_index for e in episodes]),
        plans=[e.plan for e in episodes],
    )


def binary_mask(label: Tensor, class_id: int) -> Tensor:
    """Returns 1 where the label is the class, 255 where it is 255, else 0; dtype and shape kept."""
    return torch.where(label == IGNORE, label, (label == class_id).to(label.dtype))


class EpisodeDataset(Dataset):
    """Episodes of one fold and subset.

    `load_pair` and `binary_mask` are its pieces: a store of support features needs no episode.

    Args:
        source: the data.
        sampler: names the episodes.
        transform: of query and supports alike.
        table: look-up from a label to the base learner's (`Fold.base_table`).
        classes: what `class_index` counts: the fold's base or novel classes, ascending.
        ann_type: how supports are labelled, one of `weak.KINDS`.
        skip: another episode in the place of one that cannot be read (`util.data.loading`).
    """

    def __init__(
        self,
        source: Source,
        sampler: EpisodeSampler,
        transform: Transform,
        table: np.ndarray,
        classes: Sequence[int],
        ann_type: str = "mask",
        skip: bool = False,
    ) -> None:
        self.source, self.sampler, self.transform = source, sampler, transform
        self.ann_type, self.skipping = ann_type, Skipping(skip)
        self.base_table, self.classes = torch.from_numpy(table), tuple(classes)

    def __len__(self) -> int:
        """Returns the episodes of one pass, in which every image is the query once."""
        return len(self.sampler.fold.images)

    def __getitem__(self, index: int) -> Episode:
        """Returns episode `index` >= 0; there is no last one."""
        return self.skipping(self._episode, index)

    def _episode(self, index: int) -> Episode:
        plan, rng = self.sampler.plan(index), self.sampler.rng(index)
        query, label, _ = self.load_pair(plan.query, rng)
        supports = [self.load_pair(i, rng, plan.class_id)[:2] for i in plan.supports]
        masks = [binary_mask(mask, plan.class_id) for _, mask in supports]
        return Episode(
            query=query,
            query_mask=binary_mask(label, plan.class_id).long(),
            query_base_mask=self.base_mask(label).long(),
            support=torch.stack([image for image, _ in supports]),
            support_mask=torch.stack(masks).long(),
            class_index=self.classes.index(plan.class_id),
            plan=plan,
        )

    def load_pair(
        self, image_id: str, rng: np.random.Generator | None, support_of: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reads and transforms one image.

        Args:
            image_id: which.
            rng: of the augmentation; None leaves out what is random.
            support_of: the class that it is a support of; its mask is then drawn as `ann_type`
                says. None: a query, with its own mask.

        Returns:
            The image (float32 [3,S,S]), its label of class ids (uint8 [S,S]), and the label as it
            lies on disk (uint8 [H,W]).
        """
        image, original = self.source.load(image_id)
        label = original
        if support_of is not None:
            label = annotate(original, support_of, self.ann_type, image_id)
        if rng is None:
            pair = self.transform.deterministic(image, label)
        else:
            pair = self.transform(image, label, rng)
        return *pair, torch.from_numpy(original)

    def base_mask(self, label: Tensor) -> Tensor:
        """Returns the base learner's label (0..N, 255; uint8) of a label of class ids."""
        return self.base_table[label.long()]

    def comparable(self, base: Tensor) -> Tensor:
        """Returns base labels, those that no mask can hold as 0: COCO classes on PASCAL's images.

        PASCAL labels 14 to 16 of the 60 classes that a model of COCO knows.
        """
        known = torch.unique(self.base_table).to(base.device)
        return torch.where(torch.isin(base, known), base, 0)


@timed("lists and what is on disk")
def open_episodes(
    cfg: Config,
    subset: str,
    seed: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> tuple[EpisodeDataset, list[str]]:
    """Opens the episodes of a config's fold: on base classes for 'train', on novel ones for 'val'.

    The first call on a data set reads all its masks (see `load_table`).

    Args:
        cfg: its `Data` section; `.augment`, `.flip` and `.class_balance` are of 'train' only.
            `.missing`: 'error' refuses when a listed image is not on disk, 'skip' leaves it out
            (`available`).
        subset: 'train' or 'val'.
        seed: of the episodes and their augmentation.
        mean: of the channels R, G, B the encoder expects, in units of 0-1.
        std: likewise.

    Returns:
        The episodes, and one line for each thing left out.

    Raises:
        UserError: when data is missing, broken or too little.
    """
    data, source, fold = cfg.Data, open_source(cfg.Data, subset), fold_of(cfg.Data)
    listed = fold_list(load_table(source, data.list_dir), fold, subset, data.min_pixels)
    report = compare(list_name(data, subset), listed) or []
    if data.missing == "skip":
        listed, left_out = available(listed, source.images_on_disk().__contains__, data.shot)
        report += left_out
    else:
        source.require(listed.images)
        check_shots(listed, data.shot)
    if subset == "train" and data.augment:
        transform = TrainTransform(data.size, data.scale, data.rotate, mean, std)
    else:
        kind = FlipTransform if subset == "train" and data.flip else EvalTransform
        transform = kind(data.size, mean, std)
    balance = data.class_balance if subset == "train" else 0.0
    sampler, classes = EpisodeSampler(listed, data.shot, seed, balance), fold.classes(subset)
    table, skip = fold.base_table(), subset == "train" and data.broken == "skip"
    made = EpisodeDataset(source, sampler, transform, table, classes, data.ann_type, skip)
    return made, report
