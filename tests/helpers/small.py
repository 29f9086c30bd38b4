"""A small system and random episodes, for tests of the networks and of training."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from model import AMFormer, Prediction
from model.backbones import LITE0
from util.config import Config
from util.data.dataset import EpisodeBatch
from util.features import EncodedBatch, encode
from util.runtime.distributed import Ranks
from util.train.adversarial import AdversarialTrainer

SIZE, GRID, BASE_CLASSES = 65, 9, 15  # pixels a side, cells a side


def images(batch: int, shot: int, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Return random query [B,3,S,S], support [B,K,3,S,S], support_mask [B,K,S,S] of 0, 1, 255."""
    mask = torch.zeros(batch, shot, size, size, dtype=torch.long)
    mask[..., size // 4 : size // 2, size // 5 : size // 2] = 1
    mask[..., size // 2, :] = 255
    support = torch.randn(batch, shot, 3, size, size) + mask[:, :, None].eq(1)
    query = torch.randn(batch, 3, size, size)
    query[..., : size // 2] += 1
    return query, support, mask


def episode_batch(
    shot: int, batch: int = 2, size: int = SIZE, *, dtype: torch.dtype = torch.float32
) -> EpisodeBatch:
    """Return a training batch of random episodes."""
    query, support, support_mask = images(batch, shot, size)
    truth = torch.zeros(batch, size, size, dtype=torch.long)
    truth[..., : size // 2] = 1
    truth[:, 0] = 255
    return EpisodeBatch(
        query=query.to(dtype),
        query_mask=truth,
        query_base_mask=torch.where(truth == 1, 3, truth),
        support=support.to(dtype),
        support_mask=support_mask,
        class_index=torch.full((batch,), 2),
        plans=[],
    )


def encoded(model: AMFormer, shot: int, *, empty: bool = False) -> EncodedBatch:
    """Return a training batch, encoded; with `empty` no support has an object."""
    batch = episode_batch(shot)
    if empty:
        batch.support_mask.zero_()
    return encode(model.encoder, batch)


@torch.no_grad()
def balance_heads(model: AMFormer, *episode: Tensor) -> None:
    """Shift the heads' biases until each finds an object in about half of the image.

    The new border lies in the middle of the widest gap near the median. At the median itself one
    position would lie on the border, and rounding would decide what it is.
    """
    for index, head in enumerate(model.object_mining.heads):
        logits = model(*episode).logits[index]
        ordered = (logits[:, 1] - logits[:, 0]).flatten().sort().values
        near = ordered[len(ordered) * 2 // 5 : len(ordered) * 3 // 5 + 2]
        widest = (near[1:] - near[:-1]).argmax()
        head[-1].bias[1] -= (near[widest] + near[widest + 1]) / 2


class Recorded:
    """A function that records what it returns."""

    def __init__(self, function: Callable):
        self.function, self.results = function, []

    def __call__(self, *args: object) -> object:
        self.results.append(self.function(*args))
        return self.results[-1]


def config(**method: object) -> Config:
    """Return a config with these keys of `Method`, on the small backbone."""
    made = Config()
    method = {"backbone": LITE0, **method}
    return replace(made, Method=replace(made.Method, **method))


def trainer_of(model: AMFormer, **method: object) -> AdversarialTrainer:
    """Return the trainer of a model on the CPU, with these keys of `Method`."""
    return AdversarialTrainer(model, config(**method), 100, Ranks(0, 1, torch.device("cpu")))


def all_finite(prediction: Prediction) -> bool:
    """Check that all 20 arrays of a prediction are finite."""
    maps = [v for v in vars(prediction).values() if isinstance(v, Tensor)]
    maps += [m for v in vars(prediction).values() if isinstance(v, list) for m in v]
    return len(maps) == 20 and all(m.isfinite().all() for m in maps)
