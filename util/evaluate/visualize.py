"""Pictures of evaluated episodes: one strip an episode, from its support to the final mask."""

import heapq
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks, make_grid

from model.resize import bilinear_ac
from util.data.dataset import EpisodeDataset
from util.data.image_io import voc_palette
from util.evaluate.evaluator import EvaluatedEpisode, own_size
from util.evaluate.metrics import argmax_channels, object_iou
from util.runtime import distributed
from util.runtime.files import atomic_write

HIT, WRONG, MISSED, UNKNOWN = "#34c759", "#ff3b30", "#0a84ff", "#ffd60a"
COLORS = {"object, hit": HIT, "wrongly taken": WRONG, "missed": MISSED, "not labelled": UNKNOWN}
COVER = 0.55  # how much of the picture a colour hides
TILE, TITLE = 192, 22  # pixels: side of a picture, and height of the title above it
GALLERIES = {"episodes": "Evenly spread", "worst": "Lowest IoU", "best": "Highest IoU"}

Drawn = tuple[float, int, Tensor]  # IoU, order on its rank, strip


class Gallery:
    """Strips of evenly spread episodes of an evaluation, and of those of extreme IoU.

    Args:
        episodes: what is evaluated, for the pictures.
        count: strips of each kind.
        total: episodes of this rank.
        extremes: also the `count` episodes of lowest and highest IoU.
    """

    def __init__(self, episodes: EpisodeDataset, count: int, total: int, *, extremes: bool = False):
        self.episodes, self.count, self.extremes = episodes, count, extremes
        self.chosen = {total * i // max(1, count) for i in range(count)} if total else set()
        self.seen = 0
        self.spread: list[Tensor] = []  # as tensors, which ranks may exchange
        self.lowest: list[Drawn] = []  # heaps: of the least extreme one first
        self.highest: list[Drawn] = []

    def add(self, example: EvaluatedEpisode) -> None:
        """Draws the episode if it belongs to those that are kept so far."""
        order, self.seen = self.seen, self.seen + 1
        made: list[Tensor] = []

        def drawn() -> Tensor:  # once at most, and only for an episode that is kept
            made[:] = made or [torch.from_numpy(strip(example, self.episodes))]
            return made[0]

        if order in self.chosen:
            self.spread.append(drawn())
        if not self.extremes:
            return
        for heap, sign in ((self.lowest, -1), (self.highest, 1)):
            key = (sign * example.iou, -order)
            if len(heap) < self.count:
                heapq.heappush(heap, (*key, drawn()))
            elif heap and key > heap[0][:2]:
                heapq.heapreplace(heap, (*key, drawn()))

    def gathered(self) -> dict[str, list[np.ndarray]]:
        """The strips of all ranks by the names of `GALLERIES`, on every rank; empty ones left out.

        The most extreme first.
        """
        ranks = distributed.gather((self.spread, self.lowest, self.highest))
        spread = list(chain.from_iterable(part for part, _, _ in ranks))
        step = max(1, len(spread) // max(1, self.count))
        found = {"episodes": spread[::step][: self.count]}
        for name, index in (("worst", 1), ("best", 2)):
            drawn: list[Drawn] = list(chain.from_iterable(part[index] for part in ranks))
            drawn.sort(key=lambda each: each[:2], reverse=True)
            found[name] = [picture for _, _, picture in drawn[: self.count]]
        return {name: [s.numpy() for s in strips] for name, strips in found.items() if strips}


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture with the classes of an index mask in VOC's colours, made twice as bright.

    Args:
        image: RGB, uint8 [H,W,3].
        mask: 0 where nothing is, else a class (uint8 [H,W]).

    Returns:
        uint8 [H,W,3]
    """
    colors = np.minimum(2 * np.array(voc_palette()).reshape(-1, 3), 255)
    painted = COVER * colors[mask] + (1 - COVER) * image
    return np.where(mask[..., None] > 0, painted.round(), image).astype(np.uint8)


def heat(values: np.ndarray) -> np.ndarray:
    """0..1 (float32 [H,W]) as viridis, dark to bright (uint8 [H,W,3])."""
    colored = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(colored, cv2.COLOR_BGR2RGB)


def strip(example: EvaluatedEpisode, episodes: EpisodeDataset) -> np.ndarray:
    """One evaluated episode as an RGB picture; the first support stands for all K.

    Support | query | ground truth | prior | G's masks, the first and the refined ones | final.
    Predictions are coloured as `COLORS` says; their IoU is at the query's own size.

    Returns:
        uint8 [H,W,3]
    """
    batch, row, plan = example.batch, example.row, example.plan
    prediction, target = example.prediction, example.target
    query, support = (_read(episodes, name) for name in (plan.query, plan.supports[0]))
    truth = _square(batch.query_mask[row])
    shots = f" 1/{len(plan.supports)}" if len(plan.supports) > 1 else ""
    name = episodes.sampler.fold.name(plan.class_id)
    support_mask = _square(batch.support_mask[row, 0])
    pictures = [
        (f"support{shots}: {name}", _painted(support, support_mask == 1, support_mask)),
        ("query", query),
        ("ground truth", _painted(query, truth == 1, truth)),
        ("prior", _heat(prediction.prior[row : row + 1])),
    ]
    stages = ["first mask", *(f"refined {i}" for i in range(1, len(prediction.logits)))]
    outputs = zip([*stages, "final"], [*prediction.logits, prediction.final], strict=True)
    for title, scores in outputs:
        scores = scores[row : row + 1]
        iou = object_iou(argmax_channels(own_size(scores, prediction.size, target)), target)
        mask = argmax_channels(bilinear_ac(scores, (TILE, TILE))[0]).cpu() == 1
        pictures.append((f"{title}: IoU {100 * iou:.0f}", _painted(query, mask, truth)))
    tiles = [_titled(picture, title) for title, picture in pictures]
    return make_grid(tiles, nrow=len(tiles), padding=3, pad_value=255).permute(1, 2, 0).numpy()


def save_strips(strips: Sequence[np.ndarray], path: Path) -> None:
    """Writes strips below each other as one PNG, whole or not at all."""
    picture = cv2.cvtColor(np.concatenate(strips), cv2.COLOR_RGB2BGR)
    atomic_write(path, cv2.imencode(".png", picture)[1].tobytes())


def _read(episodes: EpisodeDataset, name: str) -> Tensor:
    """An image as the model sees it, a square: uint8 [3,TILE,TILE]."""
    image, _ = episodes.source.load(name)
    small = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1)


def _square(mask: Tensor) -> Tensor:
    """A label map [S,S] -> [TILE,TILE]."""
    labels = mask.cpu().numpy().astype(np.uint8)
    return torch.from_numpy(cv2.resize(labels, (TILE, TILE), interpolation=cv2.INTER_NEAREST))


def _painted(picture: Tensor, mask: Tensor, truth: Tensor) -> Tensor:
    """A picture in grey, so that colours are the mask's, and the mask coloured by what is true."""
    grey = picture.float().mean(0, keepdim=True).byte().expand(3, -1, -1)
    there, unknown = truth == 1, truth == 255
    masks = torch.stack((mask & there, mask & (truth == 0), ~mask & there, unknown))
    return draw_segmentation_masks(grey, masks, alpha=COVER, colors=list(COLORS.values()))


def _heat(prior: Tensor) -> Tensor:
    """The mean of the prior's channels [1,2,h,w] -> a coloured map of 0 (dark) to 1 (bright)."""
    values = bilinear_ac(prior, (TILE, TILE))[0].mean(0).clamp(0, 1)
    return torch.from_numpy(heat(values.cpu().numpy())).permute(2, 0, 1)


def _titled(picture: Tensor, title: str) -> Tensor:
    bar = np.full((TITLE, picture.shape[2], 3), 255, np.uint8)
    cv2.putText(bar, title, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
    return torch.cat((torch.from_numpy(bar).permute(2, 0, 1), picture), dim=1)
