"""Masks of classes that overlap: several label maps, one below the other in one file.

A pixel of a label map has one class. Where a pixel is of several classes, as of a head and an eye,
the mask has more layers: a PNG of L * H rows for an image of H rows. A class has a pixel if any
layer says so; the order of the layers only says what the base learner sees, which is the first one.
255 counts in the first layer only.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from util.folds import is_wide


def layer_with(layers: np.ndarray, height: int, class_id: int | None) -> np.ndarray:
    """Return the first layer [H,W] of a mask [L*H,W], and all pixels of a class on top of it."""
    if len(layers) == height:
        return layers
    first, *below = layers.reshape(-1, height, layers.shape[1])
    if class_id is None:
        return first
    hidden = np.any([layer == class_id for layer in below], axis=0)
    return np.where(hidden, class_id, first).astype(first.dtype)


def draw_layers(
    masks: Mapping[int, np.ndarray], height: int, width: int, classes: int
) -> np.ndarray:
    """Return the mask [L*H,W] in which every class has all its pixels, in as few layers as it can.

    `masks`: class id -> where the class is (bool [height, width]). A class of fewer pixels lies on
    top of a larger one; of equal ones, the smaller id is on top. The result is uint8, or int16 if
    the data set has more than 254 `classes`.
    """
    sizes = {class_id: int(mask.sum()) for class_id, mask in masks.items()}
    kind = np.int16 if is_wide(classes) else np.uint8
    layers = [np.zeros((height, width), kind)]
    for class_id in sorted(masks, key=lambda c: (sizes[c], c)):
        left, number = masks[class_id].copy(), 0
        while left.any():
            if number == len(layers):
                layers.append(np.zeros((height, width), kind))
            free = left & (layers[number] == 0)
            layers[number][free] = class_id
            left &= ~free
            number += 1
    return np.concatenate(layers)


def layers_png(layers: np.ndarray) -> bytes:
    """Return a mask as a grayscale PNG, of 16 bits if it is int16."""
    values = layers.astype(np.uint16) if layers.dtype == np.int16 else layers
    return cv2.imencode(".png", values)[1].tobytes()
