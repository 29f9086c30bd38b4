"""Episodes as the frozen encoder sees them: encoded as they come, or out of a store.

The encoder never changes, so what it makes of an un-augmented image (and of an image with the mask
of one class) is the same in every episode: `FeatureStore` keeps it, up to a budget of memory.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from model.base_learner import Features
from model.encoder import Encoder
from util.data.dataset import EpisodeBatch, EpisodeDataset, binary_mask, collate
from util.data.episodes import Plan
from util.data.transform import FlipTransform
from util.distributed import Batches


@dataclass
class EncodedBatch:
    """B episodes with K shots; masks as in `EpisodeBatch`, features in place of images."""

    query: Features
    support: Features
    support_mask: Tensor
    query_mask: Tensor
    query_base_mask: Tensor
    class_index: Tensor
    plans: list[Plan]

    def __len__(self) -> int:
        return len(self.class_index)


def encode(encoder: Encoder, batch: EpisodeBatch) -> EncodedBatch:
    """Images -> features, B + B*K passes through the encoder."""
    return EncodedBatch(
        query=encoder(batch.query),
        support=encoder(batch.support.flatten(0, 1), batch.support_mask.flatten(0, 1)),
        support_mask=batch.support_mask,
        query_mask=batch.query_mask,
        query_base_mask=batch.query_base_mask,
        class_index=batch.class_index,
        plans=batch.plans,
    )


@dataclass
class _Entry:
    features: Features
    label: Tensor  # class ids [S,S]
    original: Tensor  # class ids at the image's own size [H,W]

    @property
    def bytes(self) -> int:
        return sum(
            t.numel() * t.element_size() for t in (*self.features.maps(), self.label, self.original)
        )


class FeatureStore:
    """Encoded images, the least recently used dropped first.

    Args:
        encoder: frozen, on its device; features stay on that device.
        episodes: reads and transforms the images; all that may be random is a mirror (`Data.flip`).
        gigabytes: the most that the features may take; None: no limit.
    """

    def __init__(self, encoder: Encoder, episodes: EpisodeDataset, gigabytes: float | None = None):
        self.encoder, self.episodes = encoder, episodes
        self.budget = float("inf") if gigabytes is None else gigabytes * 1e9
        self.used, self.passes = 0, 0
        self._entries: OrderedDict[tuple[str, int | None, bool], _Entry] = OrderedDict()

    def batch(self, plans: list[Plan]) -> EncodedBatch:
        """The episodes of these plans, on the encoder's device, as a DataLoader would give them."""
        queries, supports, wanted = [], [], []
        for plan in plans:
            rng = self.episodes.sampler.rng(plan.index)
            queries.append(self._entry(plan.query, None, self._mirrored(rng)))
            for name in plan.supports:
                supports.append(self._entry(name, plan.class_id, self._mirrored(rng)))
                wanted.append(plan.class_id)
        masks = [binary_mask(s.label, c) for s, c in zip(supports, wanted, strict=True)]
        classes = [plan.class_id for plan in plans]
        pairs = list(zip(queries, classes, strict=True))
        return EncodedBatch(
            query=Features.cat([q.features for q in queries]),
            support=Features.cat([s.features for s in supports]),
            support_mask=torch.stack(masks).long().unflatten(0, (len(plans), -1)),
            query_mask=torch.stack([binary_mask(q.label, c) for q, c in pairs]).long(),
            query_base_mask=torch.stack([self._base(q.label) for q in queries]).long(),
            class_index=torch.tensor([self.episodes.classes.index(c) for c in classes]).to(
                queries[0].label.device
            ),
            plans=plans,
        )

    def original(self, plan: Plan) -> Tensor:
        """The query's label of class ids as it lies on disk, uint8 [H,W]."""
        return self._entry(plan.query, None, False).original

    def _mirrored(self, rng: np.random.Generator) -> bool:
        transform = self.episodes.transform
        return isinstance(transform, FlipTransform) and transform.mirrors(rng)

    def _base(self, label: Tensor) -> Tensor:
        return self.episodes.base_mask(label.cpu()).to(label.device)

    def _entry(self, name: str, class_id: int | None, mirrored: bool) -> _Entry:
        """An image as a query (class_id None) or as a support of that class."""
        key = (name, class_id, mirrored)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        image, label, original = self.episodes.load_pair(name, None, class_id)
        if mirrored:
            image, label = image.flip(-1), label.flip(-1)
        device = next(self.encoder.parameters()).device
        image, label = image.to(device), label.to(device)
        mask = None if class_id is None else binary_mask(label, class_id)[None]
        features = self.encoder(image[None], mask)
        self.passes += 1
        entry = _Entry(features, label, original)
        self._entries[key] = entry
        self.used += entry.bytes
        while self.used > self.budget and len(self._entries) > 1:
            self.used -= self._entries.popitem(last=False)[1].bytes
        return entry


def encoded_batches(
    encoder: Encoder, episodes: EpisodeDataset, schedule: Batches, cfg
) -> Iterator[EncodedBatch]:
    """This rank's share of every training batch, on the encoder's device."""
    if cfg.Train.feature_store:
        store = FeatureStore(encoder, episodes)
        for indices in schedule:
            yield store.batch([episodes.sampler.plan(index) for index in indices])
        return
    device = next(encoder.parameters()).device
    loader = DataLoader(
        episodes,
        batch_sampler=schedule,
        collate_fn=collate,
        num_workers=cfg.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # a resumed run must not draw a seed from the global one
    )
    for batch in loader:
        yield encode(encoder, batch.to(device))
