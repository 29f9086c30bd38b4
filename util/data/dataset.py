"""Episodes as tensors.

A data set of episodes is endless: every index >= 0 is an episode. A loader runs over a plain range,
and a run resumes at any iteration:

    episodes, report = open_episodes(cfg, "train", seed=321)
    loader = DataLoader(episodes, batch_size=8, collate_fn=collate, num_workers=2,
                        sampler=range(done, total), pin_memory=True)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.constants import IGNORE, IMAGENET_MEAN, IMAGENET_STD
from util.config import Config
from util.data.episodes import EpisodePlan, EpisodeSampler, draw_of
from util.data.lists import list_on_disk
from util.data.loading import SkippingDataset
from util.data.mixed import open_source
from util.data.source import AnySource
from util.data.tables import load_table
from util.data.transform import EvalTransform, FlipTransform, KeepTransform, TrainTransform
from util.data.weak import annotate
from util.folds import fold_of
from util.runtime.progress import timed


@dataclass(frozen=True)
class Episode:
    """One episode; its fields are those of `EpisodeBatch` without the batch axis."""

    query: Tensor
    query_mask: Tensor
    query_base_mask: Tensor
    support: Tensor
    support_mask: Tensor
    class_index: int
    plan: EpisodePlan


@dataclass(frozen=True)
class EpisodeBatch:
    """A batch of episodes.

    Attributes:
        query: query images, normalized, float32 [B,3,S,S].
        query_mask: 1 on the episode's class, 255 where the label is 255, else 0; int64 [B,S,S].
        query_base_mask: labels of the base learner, 0..N and 255; int64 [B,S,S].
        support: support images, float32 [B,K,3,S,S].
        support_mask: like `query_mask`, for the supports; int64 [B,K,S,S].
        class_index: position of the class among the fold's base classes (training) or novel classes
            (validation), from 0; int64 [B].
        plans: the images and classes by name.
    """

    query: Tensor
    query_mask: Tensor
    query_base_mask: Tensor
    support: Tensor
    support_mask: Tensor
    class_index: Tensor
    plans: list[EpisodePlan]

    def to(self, device: torch.device | str) -> "EpisodeBatch":
        """Return the batch on a device; from pinned memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "EpisodeBatch":
        """Return the batch in pinned memory; DataLoader(pin_memory=True) calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "EpisodeBatch":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


def collate(episodes: list[Episode]) -> EpisodeBatch:
    """Make a batch of episodes; the `collate_fn` of a DataLoader."""
    stacked = {
        name: torch.stack([getattr(e, name) for e in episodes])
        for name in ("query", "query_mask", "query_base_mask", "support", "support_mask")
    }
    return EpisodeBatch(
        **stacked,
        class_index=torch.tensor([e.class_index for e in episodes]),
        plans=[e.plan for e in episodes],
    )


def eval_transform(cfg: Config, mean: Sequence[float], std: Sequence[float]) -> EvalTransform:
    """Return the transform of validation, test and prediction, as `Eval` says."""
    kind = KeepTransform if cfg.Eval.resize == "keep" else EvalTransform
    return kind(cfg.sizes["Eval.val_size"], mean, std, cfg.Eval.support_zoom)


def binary_mask(label: Tensor, class_id: int) -> Tensor:
    """Return 1 where the label is the class, 255 where it is 255, else 0; same dtype and shape."""
    return torch.where(label == IGNORE, label, (label == class_id).to(label.dtype))


class EpisodeDataset(SkippingDataset[Episode]):
    """Episodes of one fold and subset.

    `load_pair` and `binary_mask` also serve a store of features, which reads single images.

    `base_table` is a look-up from a label to the base learner's (`Fold.base_table`). `class_index`
    counts `classes`: the fold's base classes, as `Fold.channels`, or its novel classes, ascending.
    `ann_type`, one of
    `folds.ANNOTATION_KINDS`, says how supports are labeled. With `skip`, another episode replaces
    an unreadable one (`util.data.loading`).
    """

    def __init__(
        self,
        source: AnySource,
        sampler: EpisodeSampler,
        transform: EvalTransform,
        base_table: np.ndarray,
        classes: Sequence[int],
        ann_type: str = "mask",
        skip: bool = False,
    ) -> None:
        super().__init__(skip)
        self.source, self.sampler, self.transform = source, sampler, transform
        self.base_table, self.classes = torch.from_numpy(base_table), tuple(classes)
        self.ann_type = ann_type

    def __len__(self) -> int:
        """Return the episodes of a pass: `same_query` for each image of the list.

        Every image is the query that often if nothing else decides (`Draw.balance`), but not in a
        mix (`EpisodeSampler`).
        """
        return len(self.sampler.fold.images) * self.sampler.draw.same_query

    def make(self, index: int) -> Episode:
        """Return episode `index` >= 0.

        Raises `UnreadableFile` if an image or mask is missing or damaged.
        """
        plan, rng = self.sampler.plan(index), self.sampler.rng(index)
        query, label, _ = self.load_pair(plan.query, rng, query_of=plan.class_id)
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
        self,
        image_id: str,
        rng: np.random.Generator | None,
        support_of: int | None = None,
        *,
        query_of: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read an image and its mask, and transform them; without `rng` there is no augmentation.

        `support_of` is the class id of a support, whose mask is then drawn as `ann_type` says;
        `query_of` that of a query. Where classes overlap, it lies on top of the others. Returns the
        image (float32 [3,S,S]), its label of class ids (uint8 or int16 [S,S]), and the label of the
        file ([H,W], of the same type).
        """
        image, original = self.source.load(image_id, support_of or query_of)
        label = original
        if support_of is not None:
            label = annotate(original, support_of, self.ann_type, image_id)
        if rng is None:
            if support_of is not None:
                image, label = self.transform.support_part(image, label, support_of)
            pair = self.transform.deterministic(image, label)
        else:
            image, label = self.transform.part(image, label, support_of or query_of, rng)
            pair = self.transform(image, label, rng)
        return *pair, torch.from_numpy(original)

    def base_mask(self, label: Tensor) -> Tensor:
        """Return the base learner's label (0..N, 255) of a label of class ids."""
        return self.base_table[label.long()]

    def keep_annotated(self, base: Tensor) -> Tensor:
        """Return base labels with 0 for every class that no mask of this data set can contain.

        On PASCAL's images, a model trained on COCO predicts 60 classes, of which PASCAL's masks
        contain 14 to 16.
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
    """Open the episodes of a config's fold: base classes for 'train', novel classes for 'val'.

    `Data.augment`, `flip`, `broken` and the keys of `draw_of` act on 'train' only,
    `Eval.order` on 'val'. `seed` draws the episodes and their augmentation. The encoder expects
    `mean` and `std` in the channels R, G, B, for images in 0..1. The first call on a data set reads
    all its masks (`load_table`).

    Returns a line, too, for each difference from the published list and for everything that
    `Data.missing: skip` left out. Raises `UserError` if data is missing or broken, or a class has
    too few images.
    """
    data, source, fold = cfg.Data, open_source(cfg.Data, subset), fold_of(cfg.Data)
    listed, report = list_on_disk(load_table(source, data.list_dir), data, subset, source)
    train = subset == "train"
    size = cfg.sizes["Data.size"]
    if not train:
        transform = eval_transform(cfg, mean, std)
    elif data.augment:
        transform = TrainTransform(size, data.scale, data.rotate, mean, std, data.crop)
    else:
        transform = (FlipTransform if data.flip else EvalTransform)(size, mean, std)
    sampler = EpisodeSampler(listed, data.shot, seed, draw_of(cfg, subset))
    classes = fold.channels if train else fold.classes("val")
    episodes = EpisodeDataset(
        source, sampler, transform, fold.base_table(), classes, data.ann_type,
        skip=train and data.broken == "skip",
    )  # fmt: skip
    return episodes, report
