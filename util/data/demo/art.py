"""Draw the demo's images: twenty kinds of objects, each of one shape and one texture."""

from collections.abc import Callable

import cv2
import numpy as np

from model.constants import IGNORE

# One image is drawn per core, so OpenCV's own threads would only compete.
cv2.setNumThreads(0)

Contours = list[np.ndarray]
"""Outlines in units of the object's radius, float [N,2]; overlaps are holes (even-odd rule)."""

Texture = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Object coordinates x, y in radii -> the mix of the two colors, 0 to 1.

Details measure 0.2 to 0.4 radii, some 10 to 20 pixels: visible when the image is resized to 129 px.
"""


def _polar(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.reshape(radii, (-1, 1))


def _polygon(corners: int, radius: float = 1.0) -> np.ndarray:
    return _polar(np.arange(corners) * 2 * np.pi / corners, radius)


def _points(*xy: float) -> np.ndarray:
    return np.array(xy, np.float64).reshape(-1, 2)


_T, _FINE = (np.linspace(0, 2 * np.pi, count, endpoint=False) for count in (120, 240))

_SHAPES: dict[str, Contours] = {
    "star": [_polar(np.arange(10) * np.pi / 5, np.tile([1.0, 0.48], 5))],
    "crescent": [np.concatenate([
        _polar(np.linspace(0.62, 2 * np.pi - 0.62, 60), 1.0),
        _polar(np.linspace(2 * np.pi - 1.1, 1.1, 60), 0.65) + [0.51, 0]])],
    "cross": [_points(-0.36, -1, 0.36, -1, 0.36, -0.36, 1, -0.36, 1, 0.36, 0.36, 0.36,
                      0.36, 1, -0.36, 1, -0.36, 0.36, -1, 0.36, -1, -0.36, -0.36, -0.36)],
    "drop": [np.stack([np.cos(_T), 1.4 * np.sin(_T) * np.sin(_T / 2) ** 1.4], 1)],
    "hexagon": [_polygon(6)],
    "square": [_polygon(4)],
    "heart": [np.stack([
        16 * np.sin(_T) ** 3,
        -13 * np.cos(_T) + 5 * np.cos(2 * _T) + 2 * np.cos(3 * _T) + np.cos(4 * _T) - 2], 1) / 16],
    "arrow": [_points(1, 0, 0.1, -0.9, 0.1, -0.4, -1, -0.4, -1, 0.4, 0.1, 0.4, 0.1, 0.9)],
    "ring": [_polygon(80), _polygon(80, 0.45)],
    "triangle": [_polygon(3)],
    "disc": [_polygon(80, 0.9)],
    "bolt": [_points(-0.1, -1, 0.6, -1, 0.25, -0.3, 0.75, -0.3, -0.45, 1, -0.15, 0.12, -0.7, 0.12)],
    "flower": [_polar(_FINE, 0.75 + 0.25 * np.cos(5 * _FINE))],
    "frame": [_polygon(4), _polygon(4, 0.5)],
    "half disc": [_polar(np.linspace(0, np.pi, 60), 1.1) - [0, 0.45]],
    "gear": [_polar(_FINE, 0.87 + 0.13 * np.clip(4 * np.sin(9 * _FINE), -1, 1)),
             _polygon(40, 0.28)],
    "ellipse": [_polygon(80) * [1.05, 0.62]],
    "corner": [_points(-0.9, -0.9, -0.15, -0.9, -0.15, 0.2, 0.95, 0.2, 0.95, 0.9, -0.9, 0.9)],
    "hourglass": [_points(-0.85, -0.95, 0.85, -0.95, 0.25, 0, 0.85, 0.95, -0.85, 0.95, -0.25, 0)],
    "tee": [_points(-1, -0.9, 1, -0.9, 1, -0.2, 0.36, -0.2, 0.36, 1, -0.36, 1, -0.36, -0.2,
                    -1, -0.2)],
}  # fmt: skip


def _sharp(value: np.ndarray, slope: float = 5.0) -> np.ndarray:
    return np.clip(0.5 + slope * value, 0, 1)


def _sin(turns: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * turns)


def _cell(v: np.ndarray) -> np.ndarray:
    return v - np.floor(v) - 0.5


def _noise(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, cells: float) -> np.ndarray:
    grid = rng.normal(size=(40, 40)).astype(np.float32)
    columns, rows = ((v * cells + 20).astype(np.float32) for v in (x, y))
    return cv2.remap(grid, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)


_TEXTURES: dict[str, Texture] = {
    "stripes": lambda x, y, rng: _sharp(_sin(2.4 * x)),
    "dots": lambda x, y, rng: _sharp(0.3 - np.hypot(_cell(2.6 * x), _cell(2.6 * y)), 8),
    "checker": lambda x, y, rng: _sharp(_sin(1.6 * x) * _sin(1.6 * y)),
    "waves": lambda x, y, rng: _sharp(_sin(2.3 * y + 0.35 * _sin(1.3 * x))),
    "camouflage": lambda x, y, rng: _sharp(_noise(x, y, rng, 3.2)),
    "targets": lambda x, y, rng: _sharp(_sin(2.2 * np.hypot(x, y))),
    "zigzag": lambda x, y, rng: _sharp(_sin(2.2 * y + 1.5 * abs(_cell(1.5 * x)))),
    "grid": lambda x, y, rng: _sharp(
        np.maximum(abs(_cell(2.4 * x)), abs(_cell(2.4 * y))) - 0.36, 9),
    "rays": lambda x, y, rng: _sharp(np.sin(8 * np.arctan2(y, x)), 3),
    "grain": lambda x, y, rng: _sharp(_noise(x, y, rng, 8), 0.6),
    "bricks": lambda x, y, rng: _sharp(np.minimum(
        0.5 - abs(_cell(1.7 * x + np.floor(3.2 * y) / 2)), 0.5 - abs(_cell(3.2 * y))) - 0.1),
    "plaid": lambda x, y, rng: (_sharp(_sin(1.5 * x)) + _sharp(_sin(1.5 * y))) / 2,
    "glow": lambda x, y, rng: np.clip(1.1 - np.hypot(x, y), 0, 1),
    "marble": lambda x, y, rng: abs(_sin(0.7 * x + 0.4 * _noise(x, y, rng, 2.2))) ** 0.6,
    "scales": lambda x, y, rng: np.clip(1.4 * np.hypot(
        1.4 * _cell(2.2 * x + np.floor(3 * y) / 2), 3 * y - np.floor(3 * y)) - 0.25, 0, 1) ** 2,
    "spiral": lambda x, y, rng: _sharp(np.sin(13 * np.hypot(x, y) + 2 * np.arctan2(y, x)), 3),
    "leopard": lambda x, y, rng: _sharp(0.22 - abs(abs(_noise(x, y, rng, 3)) - 0.55), 6),
    "lattice": lambda x, y, rng: _sharp(np.prod([
        _sin(1.8 * (x * np.cos(a) + y * np.sin(a))) for a in np.arange(3) * np.pi / 3], axis=0), 6),
    "bands": lambda x, y, rng: np.floor(np.clip(2.5 * (x + 1), 0, 4.99)) / 4,
    "dashes": lambda x, y, rng: _sharp(np.minimum(
        _sin(3 * y), _sin(1.5 * x + 0.5 * np.floor(3 * y)) + 0.2)),
}  # fmt: skip

KINDS: tuple[tuple[str, str], ...] = tuple(zip(_SHAPES, _TEXTURES, strict=True))
"""Shape and texture of the classes 1, 2, ..., 20."""


def _colors(hue: float, rng: np.random.Generator) -> np.ndarray:
    """Return a dark and a light color (float [2,3]) in either order."""
    hues = (hue + np.array([0, rng.uniform(-0.3, 0.3)])) % 1 * 360
    hsv = np.stack([hues, rng.uniform(0.25, 0.9, 2), rng.uniform([0.15, 0.75], [0.45, 1.0])], 1)
    rgb = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    return rgb if rng.random() < 0.5 else rgb[::-1]


def _object(
    class_id: int, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an object at a random position, 40-64 px in radius, rotated by up to 45 degrees.

    Returns its colors [H,W,3] and its coverage [H,W], both float in 0..1.
    """
    height, width = shape
    radius, turn = rng.uniform(40, 64), np.deg2rad(rng.uniform(-45, 45))
    center = rng.uniform(0.6 * radius, np.array([width, height]) - 0.6 * radius)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outline, texture = KINDS[class_id - 1]
    contours = [np.round((c @ rotation * radius + center) * 16) for c in _SHAPES[outline]]
    cover = np.zeros(shape, np.uint8)
    cv2.fillPoly(cover, [c.astype(np.int32) for c in contours], 255, cv2.LINE_AA, shift=4)
    x, y = np.meshgrid(np.arange(width) - center[0], np.arange(height) - center[1])
    x, y = x.astype(np.float32), y.astype(np.float32)
    across, down = (row[0] * x + row[1] * y for row in (rotation / radius).astype(np.float32))
    mix = _TEXTURES[texture](across, down, rng)[..., None]
    # Hue hints at the class, no more: ranges of classes overlap, and a fifth have any hue.
    hue = rng.normal(class_id * 0.35, 0.07) if rng.random() < 0.8 else rng.random()
    first, second = _colors(hue, rng)
    light = 1 + 0.12 * across[..., None]
    color = np.clip((first + (second - first) * mix) * light, 0, 1)
    return color, cover.astype(np.float32) / 255


def _background(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise between two muted colors, with blobs and lines on it (float [H,W,3])."""
    height, width = shape
    canvas = np.zeros((height, width, 1), np.float32)
    for cells, weight in ((3, 0.5), (6, 0.3), (24, 0.2)):
        grid = rng.random((cells, cells)).astype(np.float32)
        canvas[..., 0] += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    hsv = np.stack([rng.random(2) * 360, rng.uniform(0.05, 0.5, 2), rng.uniform(0.2, 0.95, 2)], 1)
    first, second = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    canvas = first + (second - first) * canvas
    for _ in range(rng.integers(4, 10)):
        color = tuple(rng.random(3) * 0.8 + 0.1)
        x, y = rng.uniform(0, [width, height]).astype(int).tolist()
        layer = canvas.copy()
        if rng.random() < 0.5:
            axes = rng.integers(5, 22, 2).tolist()
            cv2.ellipse(layer, (x, y), axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
        else:
            end = (int(x + rng.normal() * 70), int(y + rng.normal() * 70))
            cv2.line(layer, (x, y), end, color, int(rng.integers(1, 6)), cv2.LINE_AA)
        canvas += (layer - canvas) * rng.uniform(0.4, 0.9)
    return canvas


def draw(
    classes: list[int], shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image of `shape` (H,W) with one object of each class (1 to 20), later ones in front.

    Returns the image (uint8 [H,W,3], RGB), and its mask (uint8 [H,W]): class ids, and 255 on a
    border of 2 pixels along every visible outline, as in VOC.
    """
    canvas, label = _background(shape, rng), np.zeros(shape, np.uint8)
    border, kernel = np.zeros(shape, np.uint8), np.ones((3, 3), np.uint8)
    for class_id in classes:
        color, cover = _object(class_id, shape, rng)
        shadow = cv2.GaussianBlur(np.roll(cover, (5, 4), (0, 1)), (0, 0), 4)
        canvas *= 1 - 0.45 * shadow[..., None]
        canvas += (color - canvas) * cover[..., None]
        inside = (cover >= 0.5).astype(np.uint8)
        outline = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, kernel)
        label[inside > 0] = class_id
        border[inside > 0] = 0
        border[outline > 0] = 1
    label[border > 0] = IGNORE
    grain = rng.standard_normal(canvas.shape, np.float32)
    canvas = canvas * np.float32(rng.uniform(0.8, 1.1)) + 0.02 * grain
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8), label
