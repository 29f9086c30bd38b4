"""Weights and episodes of the golden arrays, drawn from names so that none has to be stored.

The published code ran on these weights and episodes; the arrays beside this file are its output.
Every draw comes from `numpy.random.RandomState`, whose stream NumPy keeps for ever, seeded by the
CRC-32 of a name. So a weight depends on its own name and the seed only, and an episode on its name.
Change nothing here: the arrays would no longer belong to the weights.
"""

import gzip
import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent
"""The folder of the golden files."""

# Chosen by trial, so that no mask of the golden arrays is empty or full.
SHIFT = 0.042  # makes the reduced features sparse, so that thresholds on cosines matter
HEAD_GAIN = 3.0


def published_shapes(shot: int) -> dict[str, list[int]]:
    """Return {name in a published checkpoint: shape} of the ResNet-50 system on PASCAL."""
    return json.loads((GOLDEN / f"shapes_{shot}shot.json").read_text())


def published_lists(data_set: str) -> dict[str, dict]:
    """Return the published fold lists of PASCAL; of COCO, those of 227 images (see README.md)."""
    return json.loads(gzip.decompress((GOLDEN / f"{data_set}_lists.json.gz").read_bytes()))


def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of `NAME.npz`."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def fill_state(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Draw weights (float32) for names of a published checkpoint and their shapes.

    Convolutions and linear layers get scaled normal draws. Norm layers are near the identity, with
    running statistics that differ from 0 and 1, so that every layer changes the output.
    """
    return {name: _weight(name, tuple(shape), seed) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    value = np.asarray(_values(name, shape, _random(name, seed)), dtype=np.float32)
    return torch.from_numpy(value.reshape(shape).copy())


def _values(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    kind = name.rpartition(".")[2]
    fixed = {"gram_merge.weight": [0.9, 0.1], "cls_merge.weight": [0.8, 0.3]}
    if name in fixed:
        return np.array(fixed[name])
    if kind == "parts":
        return random.random_sample(shape)
    if kind == "running_var":
        return 0.5 + random.random_sample(shape)
    if kind == "running_mean":
        return 0.1 * random.standard_normal(shape)
    if len(shape) == 1:  # the weight of a norm layer, or a bias
        value = (1.0 if kind == "weight" else 0.0) + 0.1 * random.standard_normal(shape)
        # Keep the residual sums of a random backbone bounded.
        return 0.25 * value if name.endswith("bn3.weight") else value
    return _matrix(name, shape, random)


def _matrix(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """Draw the weight of a convolution or of a linear layer."""
    inputs = int(np.prod(shape[1:]))
    gain = 2.0 if name.startswith(("layer", "ppm", "cls.")) else 1.0
    value = random.standard_normal(shape) * np.sqrt(gain / inputs)
    if name.startswith("kshot_rw"):
        value = 10 * value  # so that the weights of the shots differ visibly
    if name.startswith("down_"):
        value = value - SHIFT / np.sqrt(inputs)
    if re.fullmatch(r"transformer\.mix_transformer\.cls(_r\d)?\.4\.weight", name):
        value = HEAD_GAIN * value
    return value


def episode(name: str, batch: int, shot: int, size: int, base_classes: int) -> dict[str, Tensor]:
    """Draw a batch of episodes: smooth random textures, with an ellipse of another color.

    Returns:
        query [B,3,S,S] and support [B,K,3,S,S], normalized, float32; query_mask [B,S,S] and
        support_mask [B,K,S,S] in {0,1,255}, query_base_mask [B,S,S] in {0..base_classes,255} and
        class_index [B] in 0..base_classes - 1, int64.
    """
    random = _random(name, 0)
    rows = [_one_episode(random, shot, size, base_classes) for _ in range(batch)]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def _one_episode(
    random: np.random.RandomState, shot: int, size: int, base_classes: int
) -> dict[str, Tensor]:
    color = torch.from_numpy(2 * random.standard_normal(3).astype(np.float32))
    index = int(random.randint(base_classes))
    query, mask = _scene(random, size, color)
    supports = [_scene(random, size, color) for _ in range(shot)]
    base = mask.clone()
    base[mask == 1] = index + 1
    base[:8, :8] = (index + 3) % base_classes + 1  # so that the base learner's branch matters
    return {
        "query": query,
        "query_mask": mask,
        "query_base_mask": base,
        "support": torch.stack([image for image, _ in supports]),
        "support_mask": torch.stack([mask for _, mask in supports]),
        "class_index": torch.tensor(index),
    }


def _scene(random: np.random.RandomState, size: int, color: Tensor) -> tuple[Tensor, Tensor]:
    """Draw an image [3,S,S] with one ellipse, and its mask [S,S]; a thin ring around it is 255."""
    center_y, center_x = size * (0.35 + 0.3 * random.random_sample(2))
    radius_y, radius_x = size * (0.18 + 0.14 * random.random_sample(2))
    y, x = np.mgrid[:size, :size]
    distance = np.sqrt(((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2)
    mask = np.where(distance < 1, 1, np.where(distance < 1 + 4 / size, 255, 0))
    inside = torch.from_numpy((distance < 1).astype(np.float32))
    image = _texture(random, size) + inside * color[:, None, None]
    return image, torch.from_numpy(mask.astype(np.int64))


def _texture(random: np.random.RandomState, size: int) -> Tensor:
    low = max(size // 8, 4)
    coarse = random.standard_normal((1, 3, low, low)).astype(np.float32)
    return F.interpolate(
        torch.from_numpy(coarse), size=(size, size), mode="bilinear", align_corners=True
    )[0]


def _random(name: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode()) + 7919 * seed) % 2**32)
