"""Augmentation and resizing, as published (method 7).

A transform takes an image (uint8 [H,W,3], RGB), its label (uint8 or int16 [H,W]) and a random
generator, which makes every random choice. It returns what a network takes: the normalized image
(float32 [3,S,S]) and the label [S,S] of the same type. S x S stands for any height and width.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from model.constants import IGNORE, IMAGENET_MEAN, IMAGENET_STD
from model.resize import bilinear_ac

# The workers of the data loader run in parallel; OpenCV's own threads would compete with them.
cv2.setNumThreads(0)


class EvalTransform:
    """Resizes to S x S (the image bilinearly, the label to the nearest pixel) and normalizes.

    `size` is height and width. `mean` and `std` are those of the channels R, G, B, for images in
    0..1. `zoom` is for `support_part`.
    """

    SMALLEST_PART = 1 / 8  # of the sides of an image

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        zoom: float = 0,
    ) -> None:
        self.size, self.zoom = size, zoom
        self.mean, self.std = (np.array(v, np.float32) * 255 for v in (mean, std))

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Transform an image and its label; nothing is random here."""
        return self.deterministic(image, label)

    def deterministic(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        """Resize and normalize without augmentation; the image may be of any type, in 0..255."""
        height, width = self.size
        image = cv2.resize(
            image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        return self.to_tensors(image, label)

    def part(
        self, image: np.ndarray, label: np.ndarray, class_id: int | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of an image and its label that is used: all of it."""
        return image, label

    def support_part(
        self, image: np.ndarray, label: np.ndarray, class_id: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of a support around its object (`Eval.support_zoom`), and its label.

        It has the proportions of the image. The box around all pixels of the class, made `zoom`
        times as high and as wide, fits into it. Without `zoom`, or without the class, it is all of
        the image (as published).
        """
        if not self.zoom:
            return image, label
        ys, xs = np.nonzero(label == class_id)
        if not len(ys):
            return image, label
        ends = [(each.min(), each.max() + 1) for each in (ys, xs)]
        shares = [
            self.zoom * (high - low) / side
            for (low, high), side in zip(ends, label.shape, strict=True)
        ]
        share = min(1.0, max(*shares, self.SMALLEST_PART))
        place = []
        for (low, high), side in zip(ends, label.shape, strict=True):
            length = max(1, round(share * side))
            start = min(max(0, (low + high - length) // 2), side - length)
            place.append(slice(start, start + length))
        return image[tuple(place)], label[tuple(place)]

    def to_image(self, scores: Tensor, shape: tuple[int, int]) -> Tensor:
        """Resize scores [1,C,h,w] of an image back to it, through S x S as published: [C,H,W].

        `shape` is height and width of the image.
        """
        return bilinear_ac(bilinear_ac(scores, self.size), shape)[0]

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Return what the input shows of an image (uint8 [H,W,3]): all of it."""
        return image

    def to_tensors(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalize an image ([S,S,3] in 0..255) and move its channels to the front."""
        out = np.empty((3, *label.shape), np.float32)
        # Split the channels before the arithmetic: NumPy is slow over an innermost axis of 3.
        cv2.split(image.astype(np.float32, copy=False), list(out))
        out -= self.mean[:, None, None]
        out /= self.std[:, None, None]
        return torch.from_numpy(out), torch.from_numpy(np.ascontiguousarray(label))


class KeepTransform(EvalTransform):
    """Resizes with its proportions and pads to S x S: the validation of PFENet and BAM.

    The image is made as large as fits, its longer side S, then both sides are cut down to a
    multiple of 8. It lies in the upper left corner; the rest is black, with label 255.
    """

    def factor(self, shape: tuple[int, ...]) -> float:
        """Return by what an image of this height and width is resized, before sides are cut."""
        return min(side / length for side, length in zip(self.size, shape, strict=True))

    def deterministic(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        """Resize, pad and normalize without augmentation."""
        factor = self.factor(label.shape)
        height, width = (max(8, int(side * factor) // 8 * 8) for side in label.shape)
        square = np.zeros((*self.size, 3), np.float32)
        target = np.full(self.size, IGNORE, label.dtype)
        square[:height, :width] = cv2.resize(
            image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        target[:height, :width] = cv2.resize(
            label, (width, height), interpolation=cv2.INTER_NEAREST
        )
        return self.to_tensors(square, target)

    def framed_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width that an image of this shape has with its padding.

        As published, for a square input: both are the longer side of the image.
        """
        height, width = (round(side / self.factor(shape)) for side in self.size)
        return height, width

    def to_image(self, scores: Tensor, shape: tuple[int, int]) -> Tensor:
        """Resize scores back, see `EvalTransform.to_image`; those of the padding are cut off."""
        height, width = shape
        whole = bilinear_ac(bilinear_ac(scores, self.size), self.framed_size(shape))[0]
        return whole[:, :height, :width]

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Return the image (uint8 [H,W,3]) with its padding."""
        height, width = self.framed_size(image.shape[:2])
        framed = np.zeros((height, width, 3), np.uint8)
        framed[: image.shape[0], : image.shape[1]] = image
        return framed


class FlipTransform(EvalTransform):
    """`EvalTransform`, then a random horizontal flip (p 0.5).

    Each image has only two outcomes, so a store of features can keep both.
    """

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Transform an image and its label; draws one number."""
        pair = self.deterministic(image, label)
        return (pair[0].flip(-1), pair[1].flip(-1)) if self.draw_flip(rng) else pair

    @staticmethod
    def draw_flip(rng: np.random.Generator) -> bool:
        """Draw whether the next image is flipped."""
        return bool(rng.random() < 0.5)


class TrainTransform(EvalTransform):
    """The augmentation of episodes: random scale, rotation, blur and flip, then `EvalTransform`.

    `scale` is a range, 0.9-1.1 for PASCAL, 0.8-1.25 for COCO. `rotate` is the largest rotation in
    degrees, in both directions; the mean color fills what it uncovers. `crop` is for `part`.
    """

    SHOWN, REDRAWS = 0.5, 31

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.9, 1.1),
        rotate: float = 10,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crop: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(size, mean, std)
        self.scale, self.rotate, self.crop = scale, rotate, crop

    def part(
        self, image: np.ndarray, label: np.ndarray, class_id: int | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a random part, `crop` of each side, that holds at least `SHOWN` of the class.

        If `REDRAWS` parts hold less, it is all of the image. Without the class, any part will do.
        """
        if self.crop == (1, 1):
            return image, label
        wanted = self.SHOWN * np.count_nonzero(label == class_id)
        for _ in range(self.REDRAWS):
            sides = [max(1, round(side * rng.uniform(*self.crop))) for side in label.shape]
            spare = (have - side + 1 for have, side in zip(label.shape, sides, strict=True))
            top, left = (int(rng.integers(n)) for n in spare)
            place = slice(top, top + sides[0]), slice(left, left + sides[1])
            if np.count_nonzero(label[place] == class_id) >= wanted:
                return image[place], label[place]
        return image, label

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment, resize and normalize an image and its label."""
        return self.deterministic(*self.augment(image, label, rng))

    def augment(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scale, rotate (p 0.5), blur 5x5 (p 0.5) and flip (p 0.5); the image is float32, 0..255.

        What a rotation uncovers gets the mean color and label 255.
        """
        # As published: float32 from the start, so nothing is rounded between the steps.
        image = image.astype(np.float32)
        factor = rng.uniform(*self.scale)
        height, width = (max(1, round(side * factor)) for side in label.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            angle = rng.uniform(-self.rotate, self.rotate)
            rotation = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
            image = cv2.warpAffine(
                image, rotation, (width, height), flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT, borderValue=self.mean.tolist(),
            )  # fmt: skip
            label = cv2.warpAffine(
                label, rotation, (width, height), flags=cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE,
            )  # fmt: skip
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        if rng.random() < 0.5:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        return image, label


class BaseLearnerTransform(TrainTransform):
    """The base learner's augmentation: that of episodes, then a random S x S crop (BAM).

    S is 417 as published. A smaller image is padded with the mean color and label 255. A crop that
    holds less than `LEAST_SHARE` of the pixels of label 1, the first base class, is drawn again, at
    most `REDRAWS` times.
    """

    LEAST_SHARE = 0.85

    def __init__(
        self,
        size: tuple[int, int] = (417, 417),
        scale: tuple[float, float] = (0.5, 2.0),
        rotate: float = 10,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(size, scale, rotate, mean, std)

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment, crop and normalize an image and its label."""
        image, label = self.augment(image, label, rng)
        sides = list(zip(self.size, label.shape, strict=True))
        high, wide = (max(0, wanted - side) for wanted, side in sides)
        if high or wide:
            edges = (high // 2, high - high // 2, wide // 2, wide - wide // 2)
            image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=self.mean.tolist())
            label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=IGNORE)
        wanted = self.LEAST_SHARE * np.count_nonzero(label == 1)
        for _ in range(1 + self.REDRAWS):
            spare = (have - want + 1 for have, want in zip(label.shape, self.size, strict=True))
            top, left = (int(rng.integers(n)) for n in spare)
            part = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            if np.count_nonzero(label[part] == 1) >= wanted:
                break
        return self.to_tensors(image[part], label[part])
