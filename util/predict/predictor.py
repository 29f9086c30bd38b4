"""The Predictor: a trained model, the classes to find, and their masks in new images.

For the same episode it computes, bit for bit, what test.py does (docs/predict.md).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from model import Prediction, System
from model.amformer import MiningPrediction
from model.backbones import pixel_statistics
from model.constants import IGNORE, TEMPERATURE
from model.query_support import QueryFeatures, SupportFeatures
from model.weight_file import read_content
from util import speed
from util.checkpoint.export import read_exported
from util.checkpoint.file import read_checkpoint, require_our_names
from util.checkpoint.load import presence_threshold, trained_model
from util.config import Config, config_from
from util.data.dataset import eval_transform
from util.data.image_io import resize_label
from util.evaluate.finite import require_finite
from util.evaluate.metrics import argmax_channels
from util.evaluate.presence import presence
from util.features import encode_query, encode_support
from util.predict.command import DEVICES, pretrained_file
from util.predict.example import Example, Picture, reduced_rgb
from util.runtime.errors import UserError

_ONE_STEP = np.ones((9, 9), np.uint8)  # so wide that it covers a position, which are 8 px apart
MAX_CLASSES = IGNORE - 1  # so many find room in an index mask (uint8) besides 0 and 255


@dataclass(frozen=True)
class Result:
    """A segmented image.

    Attributes:
        mask: 0 for background, or the class's position in `Predictor.names`, counted from 1
            (uint8 [H,W]).
        scores: the foreground score of each class, in that order (float32 [C,H,W]; of an image
            that `example.reduced_rgb` reduces, with the reduced height and width).
        presence: whether each class is there at all, as a score (docs/protocol.md).
        here: whether that is at least the threshold of the checkpoint; None: it has none.
    """

    mask: np.ndarray
    scores: np.ndarray
    presence: tuple[float, ...]
    here: tuple[bool, ...] | None


@dataclass(frozen=True)
class Stages:
    """The steps that led to the mask of one class, at the image's size (`example.reduced_rgb`).

    Attributes:
        prior: mean of the channels of the training-free prior, 0..1 (float32 [H,W]).
        initial: the initial mask as a cosine, 0..1 (float32 [H,W]). The model uses the cosine of
            prototype and query divided by the temperature 0.1, and 0 where that is below
            `Method.mask_threshold`. Here it is multiplied by 0.1 and clipped to 0..1.
            None: the system is not AMFormer and has none.
        refinements: the masks before the base learner is merged in: of AMFormer the first, and one
            after each of its two refinements; else one (uint8 [H,W] of 0 and 1 each).
        result: the system's answer, with the base learner, for this class alone.
    """

    prior: np.ndarray
    initial: np.ndarray | None
    refinements: tuple[np.ndarray, ...]
    result: Result

    @property
    def final(self) -> np.ndarray:
        """The mask of the answer (uint8 [H,W] of 0 and 1)."""
        return self.result.mask


class Predictor:
    """A trained model and the classes that it looks for. Not safe for several threads at once.

    `cfg` is the config of its training; `Eval.kshot` and `Eval.precision` are used too. `threshold`
    is the presence below which a class is not there, see `util.evaluate.presence`.
    """

    def __init__(self, model: System, cfg: Config, threshold: float | None = None) -> None:
        self.model, self.cfg, self.threshold = model.eval(), cfg, threshold
        self.device = next(model.parameters()).device
        self.transform = eval_transform(cfg, *pixel_statistics(cfg.Method.backbone))
        self._supports: dict[str, list[SupportFeatures]] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        overrides: list[str] | None = None,
    ) -> "Predictor":
        """Load a `best.pth` or `last.pth` of train.py, or a file of `util.checkpoint.export`.

        Raises `UserError` if the file is missing or no checkpoint of train.py, an override is
        wrong, or there is no such device.

        Args:
            path: the file.
            device: such as "cpu" or "cuda".
            overrides: words `Section.key=value` that replace values of that config, such as
                `Eval.kshot=ensemble`. On the CPU, options that only GPUs support are turned off.
        """
        path, device = Path(os.path.expanduser(path)), _device(device)
        if path.suffix == ".safetensors":
            model, cfg, threshold = read_exported(read_content(path), path, overrides)
        else:
            model, cfg, threshold = _read_checkpoint(path, overrides)
        cfg = cfg if device.type == "cuda" else _for_cpu(cfg)
        speed.set_up(model.to(device), cfg, device)
        return cls(model, cfg, threshold)

    @classmethod
    def from_pretrained(
        cls,
        name: str = "photo",
        device: str | torch.device = "cpu",
        overrides: list[str] | None = None,
    ) -> "Predictor":
        """Load weights that come with this repository; docs/photographs.md describes "photo".

        `device` and `overrides` are those of `from_checkpoint`. Raises `UserError` if there are no
        weights of this name, or as `from_checkpoint`.
        """
        return cls.from_checkpoint(pretrained_file(name), device, overrides)

    @property
    def size(self) -> str:
        """Height and width that every image is resized to, in pixels, such as "473x473"."""
        return "{}x{}".format(*self.transform.size)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes added so far; names[i] has index i + 1 in a mask."""
        return tuple(self._supports)

    def clear(self) -> None:
        """Forget all classes."""
        self._supports.clear()

    @torch.no_grad()
    def add_class(self, name: str, examples: Example | Sequence[Example]) -> None:
        """Add a class, or replace the one of that name, and encode its examples once.

        The examples are the K supports, any number, or a single one. A replaced class keeps its
        position. Raises `UserError` if the name or an example cannot be used. The classes then stay
        as they were.
        """
        if not name:
            raise UserError("class '': the name is empty; give a name")
        if name not in self._supports and len(self._supports) == MAX_CLASSES:
            raise UserError(f"class {name}: an index mask holds {MAX_CLASSES} classes; give fewer")
        examples = [examples] if isinstance(examples, Example) else examples
        if not examples:
            raise UserError(f"class {name}: there are no examples; give at least one")
        with speed.autocast(self.cfg.Eval.precision, self.device):
            self._supports[name] = [
                self._encode_support(example, f"class {name}, {_source(example, number)}")
                for number, example in enumerate(examples, 1)
            ]

    def predict(self, image: Picture, *, drop_absent: bool = False) -> Result:
        """Segment an image (as `Example.image`) of any size into all classes.

        A class covers a pixel if its foreground score is higher than its background score. Where
        several classes do, the highest foreground score wins. With `drop_absent`, a class that is
        not there covers none. Raises `UserError` if there is no class yet, the image cannot be
        read, the scores are not finite, or `drop_absent` meets a checkpoint without a threshold.
        """
        if drop_absent and self.threshold is None:
            what = "the checkpoint has no threshold of presence"
            raise UserError(
                f"{what}; train it with Eval.absent above 0 to leave out absent classes"
            )
        image, shape = reduced_rgb(image)
        predictions = self._match_all(image, self.names)
        result = self._combine(predictions, image.shape[:2], drop_absent)
        return replace(result, mask=resize_label(result.mask, shape))

    def _combine(
        self, predictions: list[Prediction], shape: tuple[int, int], drop_absent: bool = False
    ) -> Result:
        """Combine the predictions of an image of size `shape`, one for each class."""
        mask = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        best, scores = torch.full_like(mask, -torch.inf, dtype=torch.float32), []
        found = []
        for index, prediction in enumerate(predictions, 1):
            final = self.transform.to_image(prediction.final, shape).float()
            scores.append(final[1])
            found.append(presence(prediction.final[0], prediction.prior[0]))
            if drop_absent and not self._is_here(found[-1]):
                continue
            wins = (argmax_channels(final) == 1) & (final[1] > best)
            mask[wins], best = index, torch.where(wins, final[1], best)
        here = None if self.threshold is None else tuple(map(self._is_here, found))
        return Result(mask.cpu().numpy(), torch.stack(scores).cpu().numpy(), tuple(found), here)

    def _is_here(self, score: float) -> bool:
        return self.threshold is None or score >= self.threshold

    def explain(self, image: Picture, name: str | None = None) -> Stages:
        """Return the steps that lead to the mask of one class, by default the first.

        Raises `UserError` if there is no such class, or as `predict`.
        """
        if name is not None and name not in self._supports:
            known = ", ".join(self.names) or "none yet; call add_class first"
            raise UserError(f"class {name}: unknown; the classes are: {known}")
        image, _ = reduced_rgb(image)
        [prediction] = self._match_all(image, [name] if name else self.names[:1])

        def resized(maps: Tensor) -> Tensor:
            return self.transform.to_image(maps, image.shape[:2]).float()

        def fraction(values: Tensor) -> np.ndarray:
            return values.clamp(0, 1).cpu().numpy()

        def binary(logits: Tensor) -> np.ndarray:
            return argmax_channels(resized(logits)).to(torch.uint8).cpu().numpy()

        initial = None
        if isinstance(prediction, MiningPrediction):
            initial = fraction(TEMPERATURE * resized(prediction.initial_mask)[0])
        return Stages(
            prior=fraction(resized(prediction.prior).mean(0)),
            initial=initial,
            refinements=tuple(map(binary, prediction.stages)),
            result=self._combine([prediction], image.shape[:2]),
        )

    @torch.no_grad()
    def _match_all(self, image: np.ndarray, names: Iterable[str]) -> list[Prediction]:
        """Encode an image once and match it with the supports of each class."""
        if not self._supports:
            raise UserError("there is no class yet; call add_class first")
        with speed.autocast(self.cfg.Eval.precision, self.device):
            tensor, _ = self.transform.deterministic(image, np.zeros(image.shape[:2], np.uint8))
            query = encode_query(self.model.encoder, tensor)
            return [self._match(query, self._supports[name]) for name in names]

    def _match(self, query: QueryFeatures, supports: list[SupportFeatures]) -> Prediction:
        """Match as `Eval.kshot` says; "model" needs the K of training, others use a prototype."""
        kshot = self.cfg.Eval.kshot
        if kshot == "model" and len(supports) != self.model.shot:
            kshot = "prototype"
        prediction = self.model.match(query, [supports], kshot=kshot)
        require_finite(prediction)
        return prediction

    def _encode_support(self, example: Example, name: str) -> SupportFeatures:
        pair = self.transform.support_part(*example.load(name), 1)
        image, label = self.transform.deterministic(*pair)
        support = encode_support(self.model.encoder, image, label)
        if not len(support.weight):  # it lies between the positions of the feature grid
            label = torch.from_numpy(cv2.dilate(label.numpy() * (label.numpy() == 1), _ONE_STEP))
            support = encode_support(self.model.encoder, image, label)
        if not len(support.weight):
            what = f"no pixel of it is left at {self.size} pixels"
            remedy = "mark more of it, or crop the image around it"
            raise UserError(f"{name}: the object is too small, {what}; {remedy}")
        return support


def _read_checkpoint(
    path: Path, overrides: list[str] | None
) -> tuple[System, Config, float | None]:
    """Return model, config and presence threshold of a checkpoint of train.py."""
    state = read_checkpoint(path)
    require_our_names(state, path, " --config CONFIG")
    absent = [name for name in ("config", "model") if name not in state]
    if absent:
        what = f"{path}: not a checkpoint of train.py, it holds no {absent[0]}"
        raise UserError(f"{what}; name a best.pth or last.pth")
    cfg = config_from(state["config"], str(path), overrides)
    return trained_model(cfg, state, path), cfg, presence_threshold(state, path)


def _source(example: Example, number: int) -> str:
    """Return what error messages call an example: its file, or its number."""
    is_file = isinstance(example.image, (str, Path))
    return str(example.image) if is_file else f"example {number}"


def _for_cpu(cfg: Config) -> Config:
    """Return the config without options that only GPUs support."""
    return replace(
        cfg,
        Speed=replace(cfg.Speed, tf32=False, cudnn_benchmark=False),
        Train=replace(cfg.Train, precision="fp32"),
        Eval=replace(cfg.Eval, precision="bf16" if cfg.Eval.precision == "bf16" else "fp32"),
    )


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name}: {DEVICES}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has no such GPU; write cpu")
    return device
