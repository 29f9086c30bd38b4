"""Episodes as the frozen encoder sees them: encoded when needed, or taken from a store.

The encoder never changes. So its features of an image without augmentation are the same in every
episode, and `FeatureStore` keeps them, up to a memory budget. Of a support it keeps only what the
model reads (`model.query_support`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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
    """A training batch of B episodes with K shots, features in place of images.

    Attributes:
        query: features of the queries.
        supports: features of the supports, B lists of K.
        query_mask, query_base_mask, class_index, plans: as in `EpisodeBatch`.
    """

    query: QueryFeatures
    supports: list[list[SupportFeatures]]
    query_mask: Tensor
    query_base_mask: Tensor
    class_index: Tensor
    plans: list[EpisodePlan]

    def __len__(self) -> int:
        return len(self.supports)

    def split(self, parts: int) -> list["EncodedBatch"]:
        """Split the batch into at most `parts` parts, as even as possible."""
        size = -(-len(self) // parts)
        rows = [slice(i, i + size) for i in range(0, len(self), size)]
        fields = vars(self).items()
        return [EncodedBatch(**{k: value[part] for k, value in fields}) for part in rows]


def encode(encoder: Encoder, batch: EpisodeBatch) -> EncodedBatch:
    """Encode a batch of images: B + B*K passes through the encoder."""
    query, supports = encoder.episodes(batch.query, batch.support, batch.support_mask)
    masks = batch.query_mask, batch.query_base_mask
    return EncodedBatch(query, supports, *masks, batch.class_index, batch.plans)


def encode_query(encoder: Encoder, image: Tensor) -> QueryFeatures:
    """Encode one query image [3,S,S]."""
    return encoder.query(image.to(next(encoder.parameters()).device)[None])


def encode_support(encoder: Encoder, image: Tensor, mask: Tensor) -> SupportFeatures:
    """Encode one support image [3,S,S] with its mask [S,S] of 0, 1 and 255."""
    device = next(encoder.parameters()).device
    [[support]] = encoder.supports(image.to(device)[None, None], mask.to(device)[None, None])
    return support


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the memory that tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class EncodedQuery:
    """A query image in training (N = 1): class ids and the base learner's labels are [S,S]."""

    features: QueryFeatures
    label: Tensor
    base_label: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, for counting memory."""
        return *self.features.tensors(), self.label, self.base_label


class FeatureStore:
    """Encoded images; the least recently used ones are dropped when the budget is used up.

    Features stay on the encoder's device and take at most `gigabytes` (None: no limit). The newest
    entry always stays, even if it alone takes more. `episodes` reads and transforms the images,
    without randomness but for `Data.flip`. `passes` counts the images that went through the
    encoder.
    """

    def __init__(self, encoder: Encoder, episodes: EpisodeDataset, gigabytes: float | None = None):
        self.encoder, self.episodes = encoder, episodes
        self.budget = float("inf") if gigabytes is None else gigabytes * 1e9
        self.used, self.passes, self._changes = 0, 0, encoder.changes
        # (image, class if it is a support, flipped) -> EncodedQuery or SupportFeatures.
        # Not a cachetools.LRUCache: that has a fixed size and refuses an entry which exceeds it.
        self._entries: OrderedDict[tuple[str, int | None, bool], Any] = OrderedDict()

    def reserve(self, size: int) -> None:
        """Leave `size` bytes of the budget to the caller."""
        self.budget -= size

    def batch(self, indices: list[int]) -> EncodedBatch:
        """Return training episodes by their numbers, on the encoder's device."""
        found = [self.episodes.first_readable(self._episode, index) for index in indices]
        plans, queries, supports = (list(column) for column in zip(*found, strict=True))
        pairs = zip(queries, plans, strict=True)
        masks = torch.stack([binary_mask(query.label, plan.class_id) for query, plan in pairs])
        classes = [self.episodes.classes.index(plan.class_id) for plan in plans]
        return EncodedBatch(
            QueryFeatures.cat([query.features for query in queries]),
            supports,
            masks.long(),
            torch.stack([query.base_label for query in queries]).long(),
            torch.tensor(classes).to(masks.device),
            plans,
        )

    def supports(self, plans: list[EpisodePlan]) -> list[list[SupportFeatures]]:
        """Return the supports of episodes, B lists of K."""
        return [self._shots(plan) for plan in plans]

    def _shots(self, plan: EpisodePlan) -> list[SupportFeatures]:
        """Return the supports of an episode; those with a foreign mask or no image, not stored."""
        if not plan.masks and not plan.blank:
            return [self._support(name, plan.class_id, False) for name in plan.supports]
        masks = plan.masks or tuple((name, plan.class_id) for name in plan.supports)
        shots = []
        for name, mask in zip(plan.supports, masks, strict=True):
            if mask[0] == name and not plan.blank:
                shots.append(self._support(*mask, False))
                continue
            image, _, _ = self._load(name, None, False)
            _, label, _ = self.episodes.load_pair(mask[0], None, mask[1])
            if plan.blank:
                image = torch.zeros_like(image)  # 0 is the mean color
            shots.append(encode_support(self.encoder, image, binary_mask(label, mask[1])))
        return shots

    def encode_query(self, name: str) -> tuple[QueryFeatures, Tensor, Tensor]:
        """Encode a query, without storing it.

        Returns its label of class ids, too: at the size of the input [S,S], and its own [H,W].
        """
        image, label, original = self._load(name, None, False)
        return encode_query(self.encoder, image), label, original

    def _episode(self, index: int) -> tuple[EpisodePlan, EncodedQuery, list[SupportFeatures]]:
        plan, rng = self.episodes.sampler.plan(index), self.episodes.sampler.rng(index)
        query = self._query(plan, self._draw_flip(rng))
        flips = [(name, self._draw_flip(rng)) for name in plan.supports]
        return plan, query, [self._support(name, plan.class_id, flip) for name, flip in flips]

    def _draw_flip(self, rng: np.random.Generator) -> bool:
        transform = self.episodes.transform
        return isinstance(transform, FlipTransform) and transform.draw_flip(rng)

    def _query(self, plan: EpisodePlan, flipped: bool) -> EncodedQuery:
        name = plan.query

        def labeled(features: QueryFeatures, label: Tensor) -> EncodedQuery:
            labels = label, self.episodes.base_mask(label)
            return EncodedQuery(features, *(each.to(features.gram.device) for each in labels))

        def make() -> EncodedQuery:
            image, label, _ = self._load(name, None, flipped)
            return labeled(encode_query(self.encoder, image), label)

        query = self._cached((name, None, flipped), make)
        if not self.episodes.source.has_layers(name):
            return query
        label = self.episodes.load_pair(name, None, query_of=plan.class_id)[1]
        return labeled(query.features, label.flip(-1) if flipped else label)

    def _support(self, name: str, class_id: int, flipped: bool) -> SupportFeatures:
        key = (name, class_id, flipped)
        return self._cached(key, lambda: self._encode_support(*key))

    def _encode_support(self, name: str, class_id: int, flipped: bool) -> SupportFeatures:
        image, label, _ = self._load(name, class_id, flipped)
        return encode_support(self.encoder, image, binary_mask(label, class_id))

    def _load(self, name: str, class_id: int | None, flipped: bool) -> tuple[Tensor, ...]:
        """Read an image that is about to be encoded, its label, and its label at full size."""
        image, label, original = self.episodes.load_pair(name, None, class_id)
        self.passes += 1
        return (image.flip(-1), label.flip(-1), original) if flipped else (image, label, original)

    def _cached(self, key: tuple[str, int | None, bool], make: Callable[[], Any]) -> Any:
        if self._changes != self.encoder.changes:  # stored features are out of date
            self._entries.clear()
            self.used, self._changes = 0, self.encoder.changes
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        entry = self._entries[key] = make()
        self.used += count_bytes(entry.tensors())
        while self.used > self.budget and len(self._entries) > 1:
            self.used -= count_bytes(self._entries.popitem(last=False)[1].tensors())
        return entry


def encoded_batches(
    encoder: Encoder, episodes: EpisodeDataset, batches: Batches | FixedBatches, cfg: Config
) -> Iterator[EncodedBatch]:
    """Yield this rank's share of every training batch, on the encoder's device."""
    device = next(encoder.parameters()).device
    if cfg.Train.feature_store:
        store = FeatureStore(encoder, episodes)
        for indices in batches:
            with speed.autocast(cfg.Train.precision, device):
                batch = store.batch(indices)
            yield batch
        return
    options = {"collate_fn": collate, "pin_memory": device.type == "cuda"}
    for images in load_batches(episodes, batches, cfg.workers, **options):
        with speed.autocast(cfg.Train.precision, device):
            batch = encode(encoder, images.to(device))
        yield batch
