"""Episodes as the frozen encoder sees them: encoded as they come, or out of a store.

The encoder never changes, so what it makes of an un-augmented image (and of an image with the mask
of one class) is the same in every episode: `FeatureStore` keeps it, up to a budget of memory, and
of a support only what anyone reads (`model.query_support`).
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.encoder import Encoder
from model.query_support import QueryFeatures, SupportFeatures
from util import speed
from util.config import Config
from util.data.batches import Batches, FixedBatches
from util.data.dataset import EpisodeBatch, EpisodeDataset, binary_mask, collate
from util.data.episodes import EpisodePlan
from util.data.loading import load_batches
from util.data.transform import FlipTransform


@dataclass
class EncodedBatch:
    """B episodes with K shots; masks as in `EpisodeBatch`, what the encoder saw in place of images.

    `query` holds B queries, or one for all; `supports` is [B][K]. What only training reads
    (`query_base_mask`, `class_index`) is None in an evaluation.
    """

    query: QueryFeatures
    supports: list[list[SupportFeatures]]
    support_mask: Tensor
    query_mask: Tensor
    plans: list[EpisodePlan]
    query_base_mask: Tensor | None = None
    class_index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.supports)

    def split(self, parts: int) -> list["EncodedBatch"]:
        """At most so many parts, as even as can be; for a batch in which every episode has a query
        of its own."""
        size = -(-len(self) // parts)
        return [self._rows(slice(i, i + size)) for i in range(0, len(self), size)]

    def _rows(self, rows: slice) -> "EncodedBatch":
        return EncodedBatch(**{name: value[rows] for name, value in vars(self).items()})


def encode(encoder: Encoder, batch: EpisodeBatch) -> EncodedBatch:
    """Images -> features, B + B*K passes through the encoder."""
    shot = batch.support.shape[1]
    supports = encoder.supports(batch.support.flatten(0, 1), batch.support_mask.flatten(0, 1))
    return EncodedBatch(
        query=encoder.query(batch.query),
        supports=[supports[i : i + shot] for i in range(0, len(supports), shot)],
        support_mask=batch.support_mask,
        query_mask=batch.query_mask,
        query_base_mask=batch.query_base_mask,
        class_index=batch.class_index,
        plans=batch.plans,
    )


def encode_image(
    encoder: Encoder, image: Tensor, mask: Tensor | None = None
) -> QueryFeatures | SupportFeatures:
    """One image [3,S,S] as a query or, with a mask [S,S] of 0, 1 and 255, as a support."""
    device = next(encoder.parameters()).device
    image = image.to(device)[None]
    if mask is None:
        return encoder.query(image)
    [support] = encoder.supports(image, mask.to(device)[None])
    return support


@dataclass
class EncodedImage:
    """An encoded image: a query, or a support of one class.

    Attributes:
        view: what the encoder saw.
        label: class ids [S,S].
        base_label: the base learner's labels [S,S], of a query in training.
    """

    view: QueryFeatures | SupportFeatures
    label: Tensor
    base_label: Tensor | None = None

    @property
    def bytes(self) -> int:
        tensors = [*self.view.tensors(), self.label]
        tensors += [] if self.base_label is None else [self.base_label]
        return sum(t.numel() * t.element_size() for t in tensors)


class FeatureStore:
    """Encoded images, the least recently used dropped first.

    Args:
        encoder: frozen, on its device; features stay on that device.
        episodes: reads and transforms the images; all that may be random is a mirror (`Data.flip`).
        gigabytes: the most that the features may take; None: no limit.

    Attributes:
        passes: images that went through the encoder.
    """

    def __init__(self, encoder: Encoder, episodes: EpisodeDataset, gigabytes: float | None = None):
        self.encoder, self.episodes = encoder, episodes
        self.budget = float("inf") if gigabytes is None else gigabytes * 1e9
        self.used, self.passes = 0, 0
        self._entries: OrderedDict[tuple[str, int | None, bool], EncodedImage] = OrderedDict()

    def batch(self, indices: list[int]) -> EncodedBatch:
        """These episodes, on the encoder's device, as a DataLoader would give them."""
        made = [self.episodes.first_readable(self._episode, index) for index in indices]
        plans, queries, supports = (list(column) for column in zip(*made, strict=True))
        batch = self._joined(QueryFeatures.cat([q.view for q in queries]), queries, supports, plans)
        places = [self.episodes.classes.index(plan.class_id) for plan in plans]
        return replace(
            batch,
            query_base_mask=torch.stack([q.base_label for q in queries]).long(),
            class_index=torch.tensor(places).to(queries[0].label.device),
        )

    def _episode(self, index: int) -> tuple[EpisodePlan, EncodedImage, list[EncodedImage]]:
        sampler = self.episodes.sampler
        plan, rng = sampler.plan(index), sampler.rng(index)
        query = self._kept(plan.query, None, self._mirrored(rng))
        names = plan.supports
        return plan, query, [self._kept(n, plan.class_id, self._mirrored(rng)) for n in names]

    def of_query(self, query: EncodedImage, plans: list[EpisodePlan]) -> EncodedBatch:
        """The episodes of these plans, all of which ask for one query: `image(plan.query)`."""
        supports = [[self._kept(s, plan.class_id, False) for s in plan.supports] for plan in plans]
        return self._joined(query.view, [query] * len(plans), supports, plans)

    def image(
        self, name: str, class_id: int | None = None, mirrored: bool = False
    ) -> tuple[EncodedImage, Tensor]:
        """Encodes an image as a query (class_id None) or as a support of a class; keeps nothing.

        Returns:
            It, and its class ids at the image's own size [H,W].
        """
        image, label, original = self.episodes.load_pair(name, None, class_id)
        if mirrored:
            image, label = image.flip(-1), label.flip(-1)
        label = label.to(next(self.encoder.parameters()).device)
        self.passes += 1
        mask = None if class_id is None else binary_mask(label, class_id)
        return EncodedImage(encode_image(self.encoder, image, mask), label), original

    def _joined(
        self,
        query: QueryFeatures,
        queries: list[EncodedImage],
        supports: list[list[EncodedImage]],
        plans: list[EpisodePlan],
    ) -> EncodedBatch:
        classes = [plan.class_id for plan in plans]
        masks = [
            torch.stack([binary_mask(s.label, class_id) for s in shots])
            for shots, class_id in zip(supports, classes, strict=True)
        ]
        pairs = zip(queries, classes, strict=True)
        return EncodedBatch(
            query=query,
            supports=[[s.view for s in shots] for shots in supports],
            support_mask=torch.stack(masks).long(),
            query_mask=torch.stack([binary_mask(q.label, c) for q, c in pairs]).long(),
            plans=plans,
        )

    def _mirrored(self, rng: np.random.Generator) -> bool:
        transform = self.episodes.transform
        return isinstance(transform, FlipTransform) and transform.draw_flip(rng)

    def _kept(self, name: str, class_id: int | None, mirrored: bool) -> EncodedImage:
        """As `image`, out of the store where it is there."""
        key = (name, class_id, mirrored)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        seen, _ = self.image(name, class_id, mirrored)
        if class_id is None:  # only training keeps queries
            seen.base_label = self.episodes.base_mask(seen.label.cpu()).to(seen.label.device)
        self._entries[key] = seen
        self.used += seen.bytes
        while self.used > self.budget and len(self._entries) > 1:
            self.used -= self._entries.popitem(last=False)[1].bytes
        return seen


def encoded_batches(
    encoder: Encoder, episodes: EpisodeDataset, schedule: Batches | FixedBatches, cfg: Config
) -> Iterator[EncodedBatch]:
    """This rank's share of every training batch, on the encoder's device."""
    device = next(encoder.parameters()).device
    if cfg.Train.feature_store:
        store = FeatureStore(encoder, episodes)
        for indices in schedule:
            with speed.autocast(cfg.Train.precision, device):
                batch = store.batch(indices)
            yield batch
        return
    pinned = device.type == "cuda"
    for images in load_batches(
        episodes, schedule, cfg.workers, collate_fn=collate, pin_memory=pinned
    ):
        with speed.autocast(cfg.Train.precision, device):
            batch = encode(encoder, images.to(device))
        yield batch
