"""Segments one's own images by a few labelled examples.

    predictor = Predictor.from_checkpoint("exp/demo/split0_lite0/best.pth")
    predictor.set_support(["a.jpg", "b.jpg"], ["a.png", Box(40, 30, 200, 180)], "teapot")
    result = predictor.predict("query.jpg")
    result.mask  # uint8 [H,W]: 0, or 1 where the teapot is

What it computes for an episode is, bit for bit, what test.py does (docs/predict.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model import AMFormer, Prediction
from model.backbones import pixel_statistics
from model.constants import IGNORE
from model.query_support import QueryFeatures, SupportFeatures
from util.checkpoint.file import read_checkpoint
from util.checkpoint.load import trained_model
from util.config import Config, config_from
from util.data import weak
from util.data.image_io import read_image, read_label
from util.data.transform import EvalTransform
from util.evaluate.evaluator import own_size
from util.evaluate.metrics import argmax_channels
from util.features import encode_image
from util.runtime import speed
from util.runtime.errors import UserError

Picture = np.ndarray | Image.Image | str | Path
MOST = IGNORE - 1  # classes that an index mask has room for


@dataclass(frozen=True)
class Box:
    """Everything in x0 <= x < x1, y0 <= y < y1 counts as the object, as with Data.ann_type bbox."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Points:
    """Pixels (x, y) on the object; a disc around each counts as it, as with Data.ann_type point.

    The disc's radius is 1/50 of the image's longer side, at least 3 pixels. Drawn from a mask, it
    would be cut to the object; here it is not, as nobody knows the object: click well inside.
    """

    xy: Iterable[tuple[float, float]]


Label = Picture | Box | list[Box] | Points


@dataclass(frozen=True)
class Result:
    """A segmented image.

    Attributes:
        mask: 0, or the place of the class in `Predictor.names`, from 1 (uint8 [H,W]).
        scores: the foreground score of each class, in that order (float32 [C,H,W]).
    """

    mask: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Stages:
    """How one class was found, at the image's own size.

    Attributes:
        prior: mean of the training-free prior's two channels, 0..1 (float32 [H,W]).
        initial: where the initial mask is not 0 (uint8 [H,W] of 0 and 1, as the rest).
        refinements: what G takes for the object at first and after each of its two refinements.
        final: the system's answer, the base learner's part included.
    """

    prior: np.ndarray
    initial: np.ndarray
    refinements: tuple[np.ndarray, ...]
    final: np.ndarray


class Predictor:
    """A trained model, and the supports that tell it what to look for. Not for several threads.

    Args:
        model: filled, on its device.
        cfg: that it was trained with; of `Eval`, `kshot` and `precision` have a say.
    """

    def __init__(self, model: AMFormer, cfg: Config):
        self.model, self.cfg = model.eval(), cfg
        self.device = next(model.parameters()).device
        self.transform = EvalTransform(cfg.Data.size, *pixel_statistics(cfg.Method.backbone))
        self._supports: dict[str, list[SupportFeatures]] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        overrides: list[str] | None = None,
    ) -> "Predictor":
        """Loads a best.pth or last.pth of train.py, which holds its config.

        Args:
            path: the file.
            device: such as "cpu" or "cuda".
            overrides: words `Section.key=value` that win over that config, such as
                `Eval.kshot=ensemble`. Options that are for GPUs alone are off on the CPU.

        Raises:
            UserError: no such file, one that is no checkpoint of train.py, or no such device.
        """
        path, device = Path(path), _device(device)
        state = read_checkpoint(path)
        absent = [name for name in ("config", "model") if name not in state]
        if absent:
            raise UserError(
                f"{path}: no checkpoint of train.py, as it holds no {absent[0]}; name a best.pth "
                "or last.pth"
            )
        cfg = config_from(state["config"], str(path), overrides)
        cfg = cfg if device.type == "cuda" else _for_cpu(cfg)
        model = trained_model(cfg, state, path)
        speed.set_up(model.to(device), cfg, device)
        return cls(model, cfg)

    @property
    def size(self) -> int:
        """Side of the square that every image is resized to."""
        return self.cfg.Data.size

    @property
    def names(self) -> tuple[str, ...]:
        """The classes so far; class i has index i + 1 in a mask."""
        return tuple(self._supports)

    def clear(self) -> None:
        """Forgets all classes."""
        self._supports.clear()

    @torch.no_grad()
    def set_support(
        self, images: Picture | list, masks: Label | list, name: str = "object"
    ) -> None:
        """Adds a class, or replaces the one of that name; the images are encoded here, once.

        Args:
            images: one or a list (K of any number). Arrays are uint8 [H,W,3] (RGB), [H,W] or
                [H,W,4] (the alpha channel is left out), or uint16, of which the upper 8 bits are
                taken. Files and PIL images are turned upright as their EXIF orientation says.
            masks: for each image a mask of its size (an array [H,W], a PIL image or a PNG; 0 is
                background, 255 is ignored, anything else is the object), a `Box`, a list of them,
                or `Points`, in pixels of the upright image.
            name: of the class.

        Raises:
            UserError: what cannot be used, in one line; the classes are then as they were.
        """
        if not isinstance(images, (list, tuple)):
            one = not isinstance(masks, list) or (masks and isinstance(masks[0], Box))
            images, masks = [images], [masks] if one else masks
        if not isinstance(masks, (list, tuple)) or len(masks) != len(images) or not images:
            given = len(masks) if isinstance(masks, (list, tuple)) else 1
            raise UserError(
                f"support {name}: {len(images)} images and {given} masks; give one for each"
            )
        if not name or (name not in self._supports and len(self._supports) == MOST):
            raise UserError(f"support {name!r}: give a name, and at most {MOST} classes")
        with speed.autocast(self.cfg.Eval.precision, self.device):
            seen = [
                self._support(image, mask, f"support {name}, {_called(image, i)}")
                for i, (image, mask) in enumerate(zip(images, masks, strict=True), 1)
            ]
        self._supports[name] = seen

    def predict(self, image: Picture) -> Result:
        """Segments an image into all classes; of any size, the result has the same.

        A class is found where its foreground score beats its background score; where several are,
        the one with the highest foreground score counts.

        Raises:
            UserError: no support yet, or no picture.
        """
        image = as_rgb(image)
        mask = torch.zeros(image.shape[:2], dtype=torch.uint8, device=self.device)
        best, scores = torch.full_like(mask, -torch.inf, dtype=torch.float32), []
        for index, prediction in enumerate(self._predictions(image, self.names), 1):
            final = own_size(prediction.final, prediction.size, mask).float()
            wins = (argmax_channels(final) == 1) & (final[1] > best)
            mask[wins], best = index, torch.where(wins, final[1], best)
            scores.append(final[1])
        return Result(mask.cpu().numpy(), torch.stack(scores).cpu().numpy())

    def explain(self, image: Picture, name: str | None = None) -> Stages:
        """What leads to one class's mask; `name`: which, the first where None.

        Raises:
            UserError: no support of that name, or no picture.
        """
        if name is not None and name not in self._supports:
            raise UserError(f"no support is called {name!r}; there is {', '.join(self.names)}")
        image = as_rgb(image)
        like = torch.empty(image.shape[:2])
        [prediction] = self._predictions(image, [name] if name else self.names[:1])

        def own(maps: Tensor) -> Tensor:
            return own_size(maps, prediction.size, like).float()

        def binary(mask: Tensor) -> np.ndarray:
            return mask.to(torch.uint8).cpu().numpy()

        return Stages(
            prior=own(prediction.prior).mean(0).clamp(0, 1).cpu().numpy(),
            initial=binary(own(prediction.initial_mask)[0] > 0),
            refinements=tuple(binary(argmax_channels(own(logits))) for logits in prediction.logits),
            final=binary(argmax_channels(own(prediction.final))),
        )

    @torch.no_grad()
    def _predictions(self, image: np.ndarray, names: Iterable[str]) -> list[Prediction]:
        """Encodes an image once and matches it with each class's supports."""
        if not self._supports:
            raise UserError("no support yet; call set_support first")
        with speed.autocast(self.cfg.Eval.precision, self.device):
            tensor, _ = self.transform.deterministic(image, np.zeros(image.shape[:2], np.uint8))
            query = encode_image(self.model.encoder, tensor)
            return [self._match(query, self._supports[name]) for name in names]

    def _match(self, query: QueryFeatures, supports: list[SupportFeatures]) -> Prediction:
        """As `Eval.kshot` says; a K that the model was not trained with is always a prototype."""
        kshot = self.cfg.Eval.kshot
        if kshot == "model" and len(supports) != self.model.shot:
            kshot = "prototype"
        return self.model.match(query, [supports], kshot=kshot)

    def _support(self, image: Picture, mask: Label, called: str) -> SupportFeatures:
        image = as_rgb(image)
        label = _as_label(mask, image.shape[:2], called)
        if not (label == 1).any():
            void = "; 255 means to ignore, so write 1" if (label == IGNORE).any() else ""
            raise UserError(f"{called}: no pixel of the mask is the object{void}")
        support = encode_image(self.model.encoder, *self.transform.deterministic(image, label))
        if not len(support.weight):
            raise UserError(
                f"{called}: at {self.size}x{self.size} pixels nothing is left of so small an "
                "object; mark more of it, or cut the image to its surroundings"
            )
        return support


def as_rgb(image: Picture) -> np.ndarray:
    """An image in any of the forms that `Predictor` takes -> uint8 [H,W,3], upright.

    Raises:
        UserError: no such file, or no picture of 8 or 16 bits.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        deep = image.mode.startswith("I;16")
        image = np.asarray(image if deep or image.mode in "FI" else image.convert("RGB"))
    image = np.asarray(image)
    shaped = image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4)
    if image.dtype not in (np.uint8, np.uint16) or not shaped or not image.size:
        raise UserError(
            f"an image must be uint8 or uint16, [H,W], [H,W,3] or [H,W,4], given {image.dtype} "
            f"{list(image.shape)}; convert it"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def _as_label(mask: Label, shape: tuple[int, int], called: str) -> np.ndarray:
    """A mask, boxes or points -> 1 on the object, 255 where ignored, else 0 (uint8 [H,W])."""
    height, width = shape
    if isinstance(mask, Box) or (isinstance(mask, list) and mask and isinstance(mask[0], Box)):
        drawn = np.zeros(shape, np.uint8)
        for each in [mask] if isinstance(mask, Box) else mask:
            corners = (each.x0, each.y0, each.x1, each.y1)
            x0, y0, x1, y1 = (round(c) if np.isfinite(c) else -1 for c in corners)
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise UserError(
                    f"{called}: the box {','.join(f'{c:g}' for c in corners)} is empty or leaves "
                    f"the image of {width}x{height} pixels; x0,y0,x1,y1 want x0 < x1, y0 < y1"
                )
            drawn |= weak.box(shape, x0, y0, x1, y1)
        return drawn
    if isinstance(mask, Points):
        points = list(mask.xy)
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(
                    f"{called}: the point {x:g},{y:g} is outside the image of {width}x{height}"
                )
        return weak.discs(shape, points)
    if isinstance(mask, (str, Path)):
        label = read_label(mask)
    else:
        upright = ImageOps.exif_transpose(mask) if isinstance(mask, Image.Image) else mask
        label = np.asarray(upright)
    if label.ndim != 2 or label.dtype.kind not in "bui":
        raise UserError(
            f"{called}: a mask must be whole numbers or booleans [H,W], given {label.dtype} "
            f"{list(label.shape)}"
        )
    if label.shape != shape:
        turned = ", which its EXIF orientation has turned" if label.shape == shape[::-1] else ""
        raise UserError(
            f"{called}: the mask is {label.shape[1]}x{label.shape[0]} pixels and its image "
            f"{width}x{height}{turned}; the two must have one size"
        )
    return np.where(label == IGNORE, IGNORE, label != 0).astype(np.uint8)


def _called(image: Picture, place: int) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"image {place}"


def _for_cpu(cfg: Config) -> Config:
    """Without the options that are for GPUs alone, as a model trained on one may have them."""
    return replace(
        cfg,
        Speed=replace(cfg.Speed, tf32=False, cudnn_benchmark=False),
        Train=replace(cfg.Train, precision="fp32"),
        Eval=replace(cfg.Eval, precision=cfg.Eval.precision.replace("fp16", "fp32")),
    )


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: write cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has no such GPU; write cpu")
    return device
