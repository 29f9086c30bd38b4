"""Pictures of evaluated episodes: one strip per episode, from its support to the final mask."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import chain

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks, make_grid

from model.constants import IGNORE
from model.resize import bilinear_ac
from util.data import EpisodeDataset, binary_mask, voc_palette
from util.evaluate.evaluator import EvaluatedEpisode, Evaluator
from util.evaluate.metrics import argmax_channels, object_iou
from util.evaluate.order import EvaluationOrder
from util.evaluate.tally import Place, Row, iou_of, place, place_of
from util.runtime import distributed

COLORS = {"hit": "#34c759", "false alarm": "#ff3b30", "miss": "#0a84ff", "not labeled": "#ffd60a"}
OPACITY = 0.55  # of a color over the image
TILE, TITLE = 192, 22  # pixels: side of an image, and height of the title above it
GALLERIES = {"episodes": "Evenly spread", "worst": "Lowest IoU", "best": "Highest IoU"}


def choose_episodes(rows: Sequence[Row], count: int, *, extremes: bool) -> dict[str, list[Row]]:
    """Return which of the right episodes are drawn: name in `GALLERIES` -> their rows.

    They are `count` evenly spread ones. With `extremes`, also those of the lowest and of the
    highest IoU; the most extreme comes first, and of equal ones the first.
    """
    right = [row for row in rows if not row["control"]]
    count = min(count, len(right))
    chosen = {"episodes": [right[len(right) * i // count] for i in range(count)]}
    if extremes:
        chosen["worst"] = heapq.nsmallest(count, right, iou_of)
        chosen["best"] = heapq.nlargest(count, right, iou_of)
    return chosen


def draw_episodes(
    evaluator: Evaluator, order: EvaluationOrder, rows: Sequence[Row], count: int, *, extremes: bool
) -> dict[str, list[np.ndarray]]:
    """Draw strips of an evaluation's episodes (`choose_episodes`), on every rank.

    The chosen episodes run again, in the groups in which they ran before. Every rank has to call
    this. Galleries without a strip are left out.
    """
    chosen = choose_episodes(rows, count, extremes=extremes)
    wanted = {place(row) for row in chain.from_iterable(chosen.values())}
    numbers = [n for n, group in enumerate(order.every) if wanted & set(map(place_of, group))]
    drawn: list[tuple[Place, Tensor]] = []  # tensors: ranks can exchange them

    def draw(episode: EvaluatedEpisode) -> None:
        if (at := place_of(episode.task)) in wanted:
            drawn.append((at, torch.from_numpy(draw_strip(episode, evaluator.episodes))))

    evaluator.run(order.share(numbers), on_episode=draw)
    strips = dict(chain.from_iterable(distributed.gather(drawn)))
    found = {name: [strips[place(row)].numpy() for row in of] for name, of in chosen.items()}
    return {name: pictures for name, pictures in found.items() if pictures}


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paint an index mask [H,W] over an RGB image (uint8 [H,W,3]); 0 is background.

    The colors are those of `mask_colors`; those of 1 to 255 repeat for larger indices. Returns
    uint8 [H,W,3].
    """
    painted = OPACITY * mask_colors()[(mask.astype(int) - 1) % IGNORE + 1] + (1 - OPACITY) * image
    return np.where(mask[..., None] > 0, painted.round(), image).astype(np.uint8)


def mask_colors() -> np.ndarray:
    """Return the color of each index of an overlay: VOC's, twice as bright (int [256,3])."""
    return np.minimum(2 * np.array(voc_palette()).reshape(-1, 3), 255)


def heatmap(values: np.ndarray) -> np.ndarray:
    """Color values in 0..1 (float32 [H,W]) with viridis, dark to bright (uint8 [H,W,3])."""
    colored = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(colored, cv2.COLOR_BGR2RGB)


def draw_strip(episode: EvaluatedEpisode, episodes: EpisodeDataset) -> np.ndarray:
    """Draw one evaluated episode as RGB (uint8 [H,W,3]); of K supports, the first is shown.

    From left to right: support, query, ground truth, prior, the meta learner's masks (of AMFormer,
    the first and the refined ones), final mask. Predictions are colored as in `COLORS`. Their IoU
    is at the query's size.
    """
    row, plan = episode.row, episode.plan
    prediction, target = episode.prediction, episode.target
    query, support = _read(episodes, plan.query), _read(episodes, plan.supports[0], plan.class_id)
    truth = _read_mask(episodes, plan.query, plan.class_id, is_support=False)
    support_mask = _read_mask(episodes, plan.supports[0], plan.class_id, is_support=True)
    shots = f" 1/{len(plan.supports)}" if len(plan.supports) > 1 else ""
    name = episodes.sampler.fold.name(plan.class_id)
    pictures = [
        (f"support{shots}: {name}", _paint(support, support_mask == 1, support_mask)),
        ("query", query),
        ("ground truth", _paint(query, truth == 1, truth)),
        ("prior", _draw_prior(prediction.prior[row : row + 1])),
    ]
    stages = prediction.stages
    titles = ["first mask", *(f"refined {i}" for i in range(1, len(stages))), "final"]
    for title, scores in zip(titles, [*stages, prediction.final], strict=True):
        scores = scores[row : row + 1]
        iou = object_iou(argmax_channels(episode.resize(scores)), target)
        mask = argmax_channels(bilinear_ac(scores, (TILE, TILE))[0]).cpu() == 1
        pictures.append((f"{title}: IoU {100 * iou:.0f}", _paint(query, mask, truth)))
    tiles = [_add_title(picture, title) for title, picture in pictures]
    return _join(tiles)


def _join(tiles: list[Tensor]) -> np.ndarray:
    """Put tiles [3,H,W] side by side: uint8 [H,W,3]."""
    return make_grid(tiles, nrow=len(tiles), padding=3, pad_value=255).permute(1, 2, 0).numpy()


def draw_labels(image: np.ndarray, labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw an image (uint8 [S,S,3]), alone and under each of its label maps (integers [S,S])."""
    small = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)
    pictures = {"image": small}
    for title, label in labels.items():
        label = cv2.resize(label, (TILE, TILE), interpolation=cv2.INTER_NEAREST)
        pictures[title] = overlay(small, label)
    return draw_side_by_side(pictures)


def draw_side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw RGB pictures of any size by title as squares of one size, in a row: uint8 [H,W,3]."""
    size = (TILE, TILE)
    small = {t: cv2.resize(p, size, interpolation=cv2.INTER_AREA) for t, p in pictures.items()}
    return _join([_add_title(torch.from_numpy(p).permute(2, 0, 1), t) for t, p in small.items()])


def encode_strips(strips: Sequence[np.ndarray]) -> bytes:
    """Return strips (uint8 [H,W,3] each), below each other, as a PNG."""
    picture = cv2.cvtColor(np.concatenate(strips), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", picture)[1].tobytes()


def _read(episodes: EpisodeDataset, name: str, support_of: int | None = None) -> Tensor:
    """Read an image as a square, as the model sees it: uint8 [3,TILE,TILE]."""
    image, label = episodes.source.load(name, support_of)
    if support_of is not None:
        image, _ = episodes.transform.support_part(image, label, support_of)
    framed = episodes.transform.frame(image)
    small = cv2.resize(framed, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1)


def _read_mask(episodes: EpisodeDataset, name: str, class_id: int, is_support: bool) -> Tensor:
    """Read a mask as the model gets it: 0, 1 and 255, uint8 [TILE,TILE]."""
    role = "support_of" if is_support else "query_of"
    _, label, _ = episodes.load_pair(name, None, **{role: class_id})
    mask = binary_mask(label, class_id).numpy()
    return torch.from_numpy(cv2.resize(mask, (TILE, TILE), interpolation=cv2.INTER_NEAREST))


def _paint(picture: Tensor, mask: Tensor, truth: Tensor) -> Tensor:
    """Turn a picture gray, and color its mask by whether it is right."""
    gray = picture.float().mean(0, keepdim=True).byte().expand(3, -1, -1)
    is_object = truth == 1
    masks = (mask & is_object, mask & (truth == 0), ~mask & is_object, truth == IGNORE)
    colors = list(COLORS.values())
    return draw_segmentation_masks(gray, torch.stack(masks), alpha=OPACITY, colors=colors)


def _draw_prior(prior: Tensor) -> Tensor:
    """Color the mean of the prior's channels [1,n,h,w]: uint8 [3,TILE,TILE]."""
    values = bilinear_ac(prior, (TILE, TILE))[0].mean(0).clamp(0, 1)
    return torch.from_numpy(heatmap(values.cpu().numpy())).permute(2, 0, 1)


def _add_title(picture: Tensor, title: str) -> Tensor:
    bar = np.full((TITLE, picture.shape[2], 3), 255, np.uint8)
    cv2.putText(bar, title, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
    return torch.cat((torch.from_numpy(bar).permute(2, 0, 1), picture), dim=1)
