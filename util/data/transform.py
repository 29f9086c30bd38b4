"""Augmentation and resizing, as published (method.md section 7)."""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from model.constants import IGNORE, IMAGENET_MEAN, IMAGENET_STD

# The data loader's workers are the parallelism; OpenCV's own threads would fight them for cores.
cv2.setNumThreads(0)


class Transform(Protocol):
    """An image (uint8 [H,W,3], RGB) and its label (uint8 [H,W]) -> what a network takes.

    Returns the normalised image (float32 [3,S,S]) and the label (uint8 [S,S]). Every random choice
    comes from `rng`.
    """

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]: ...


class EvalTransform:
    """Resizes to S x S, the image linearly, the label to the nearest, and normalises.

    Args:
        size: S.
        mean: of the channels R, G, B, in units of 0-1.
        std: likewise.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.size = size
        self.mean, self.std = (np.array(v, np.float32) * 255 for v in (mean, std))

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """See `Transform`; draws nothing from `rng`."""
        return self.deterministic(image, label)

    def deterministic(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        """The transform without chance: resized and normalised."""
        shape = (self.size, self.size)
        image = cv2.resize(image.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, shape, interpolation=cv2.INTER_NEAREST)
        return self.to_tensors(image, label)

    def to_tensors(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalises an image ([S,S,3] in 0-255) and puts its channels first."""
        out = np.empty((3, *label.shape), np.float32)
        cv2.split(np.float32(image), list(out))  # first: NumPy is slow over an axis of three
        out -= self.mean[:, None, None]
        out /= self.std[:, None, None]
        return torch.from_numpy(out), torch.from_numpy(np.ascontiguousarray(label))


class FlipTransform(EvalTransform):
    """`EvalTransform`, then mirrored with p 0.5: the part of the augmentation with two outcomes."""

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """See `Transform`; draws one number."""
        image, label = self.deterministic(image, label)
        return (image.flip(-1), label.flip(-1)) if self.mirrors(rng) else (image, label)

    @staticmethod
    def mirrors(rng: np.random.Generator) -> bool:
        """Whether the next image is mirrored."""
        return bool(rng.random() < 0.5)


class TrainTransform(EvalTransform):
    """Random scale, rotation, blur and flip, then `EvalTransform`: the episodes' augmentation.

    Args:
        size: S.
        scale: range of the random scale; 0.9-1.1 for PASCAL, 0.8-1.25 for COCO.
        rotate: largest rotation in degrees, either way.
        mean: of the channels R, G, B, in units of 0-1. Fills what rotation lays bare.
        std: likewise.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.9, 1.1),
        rotate: float = 10,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(size, mean, std)
        self.scale, self.rotate = scale, rotate

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return super().__call__(*self.jitter(image, label, rng), rng)

    def jitter(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scales, rotates (p 0.5), blurs 5x5 (p 0.5) and flips (p 0.5); as float32, 0-255."""
        # Floats from the start, as published: no rounding between the steps.
        image = image.astype(np.float32)
        factor = rng.uniform(*self.scale)
        height, width = (max(1, round(side * factor)) for side in label.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            angle = rng.uniform(-self.rotate, self.rotate)
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
            image = cv2.warpAffine(
                image, turn, (width, height), flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT, borderValue=self.mean.tolist(),
            )  # fmt: skip
            label = cv2.warpAffine(
                label, turn, (width, height), flags=cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE,
            )  # fmt: skip
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        if rng.random() < 0.5:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        return image, label


class BaseLearnerTransform(TrainTransform):
    """The base learner's augmentation: as `TrainTransform`, but a random S x S crop at the end.

    What the crop lacks is filled with the mean colour and label 255, as in PSPNet and BAM.

    Args:
        size: S, 417 as published.
        scale: range of the random scale.
        rotate: largest rotation in degrees, either way.
        mean: of the channels R, G, B, in units of 0-1.
        std: likewise.
    """

    def __init__(
        self,
        size: int = 417,
        scale: tuple[float, float] = (0.5, 2.0),
        rotate: float = 10,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(size, scale, rotate, mean, std)

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        image, label = self.jitter(image, label, rng)
        high, wide = (max(0, self.size - side) for side in label.shape)
        if high or wide:
            edges = (high // 2, high - high // 2, wide // 2, wide - wide // 2)
            image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=self.mean.tolist())
            label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=IGNORE)
        top, left = (int(rng.integers(side - self.size + 1)) for side in label.shape)
        part = slice(top, top + self.size), slice(left, left + self.size)
        return self.to_tensors(image[part], label[part])
