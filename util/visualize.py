"""Strips of pictures: support | query | ground truth | prior | prediction, one episode a row."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks, make_grid, save_image

from model.resize import bilinear_ac
from util.data.dataset import EpisodeDataset
from util.evaluate import Example
from util.files import atomic_write

OBJECT, IGNORED = "#ff3b30", "#ffd60a"
TITLE = 22  # pixels above each picture


def strip(example: Example, episodes: EpisodeDataset) -> Tensor:
    """One evaluated episode as an RGB picture; the first support stands for all K.

    Returns:
        uint8 [3,H,W]
    """
    batch, row, plan = example.batch, example.row, example.plan
    prediction = example.prediction
    size = prediction.size
    query, support = (_read(episodes, name, size) for name in (plan.query, plan.supports[0]))
    prior = bilinear_ac(prediction.prior[row : row + 1], size)[0].mean(0)
    predicted = bilinear_ac(prediction.final[row : row + 1], size)[0].argmax(0)
    name = episodes.sampler.fold.name(plan.class_id)
    shots = f" 1/{len(plan.supports)}" if len(plan.supports) > 1 else ""
    pictures = [
        (f"support{shots}: {name}", _masked(support, batch.support_mask[row, 0])),
        ("query", query),
        ("ground truth", _masked(query, batch.query_mask[row])),
        ("prior", _heat(prior)),
        (f"prediction, IoU {100 * example.iou:.0f}", _masked(query, predicted)),
    ]
    tiles = [_titled(picture, title) for title, picture in pictures]
    return make_grid(tiles, nrow=len(tiles), padding=3, pad_value=255)


def save_strips(strips: list[Tensor], path: str | Path) -> None:
    """Writes strips below each other as one PNG."""
    picture = torch.cat(strips, dim=1).float() / 255
    atomic_write(path, lambda file: save_image(picture, file, format="png"))


def _read(episodes: EpisodeDataset, name: str, size: tuple[int, int]) -> Tensor:
    image, _ = episodes.source.load(name)
    return torch.from_numpy(cv2.resize(image, size, interpolation=cv2.INTER_AREA)).permute(2, 0, 1)


def _masked(picture: Tensor, mask: Tensor) -> Tensor:
    mask = mask.cpu()
    masks = torch.stack((mask == 1, mask == 255))
    return draw_segmentation_masks(picture, masks, alpha=0.55, colors=[OBJECT, IGNORED])


def _heat(values: Tensor) -> Tensor:
    grey = (255 * values.clamp(0, 1)).byte().cpu().numpy()
    rgb = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _titled(picture: Tensor, title: str) -> Tensor:
    bar = np.full((TITLE, picture.shape[2], 3), 255, np.uint8)
    cv2.putText(bar, title, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (30, 30, 30), 1, cv2.LINE_AA)
    return torch.cat((torch.from_numpy(bar).permute(2, 0, 1), picture), dim=1)
