"""A data set on disk: where its images and masks are, and how they are read."""

import os
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from util.config import DataSection
from util.data.image_io import SUFFIXES, UnreadableFile, read_label, read_reduced, resize_label
from util.data.layers import layer_with
from util.data.listing import Listing, list_pictures, not_used, read_ids, require_listed
from util.folds import CLASSES, is_wide
from util.runtime.errors import UserError
from util.runtime.files import Outputs, atomic_write, unwritable
from util.runtime.system import file_version
from util.runtime.texts import require_case

SUBSETS = ("train", "val")

READ_ATTEMPTS = 3
"""Attempts to read an image and its mask: a network drive may fail for a moment."""

_PAUSE = 0.1  # seconds between two attempts

_PREPARE_COCO = "python -m util.data.prepare coco --coco DIR --out data, see docs/data.md"


class AnySource(ABC):
    """What can be read by the ids of images: of one data set (`Source`), or of a mix of several.

    Attributes:
        subset: 'train' or 'val'.
        classes: number of classes, background not counted.
        wide: whether masks are int16 (`is_wide`).
        parts: the data sets by name; one that is no mix is its own only part, named ''.
        tables: by the same names, the class ids here of the ids there; 0 for none.
    """

    subset: str
    classes: int
    wide: bool
    parts: dict[str, "Source"]
    tables: dict[str, np.ndarray]

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Return the path of an image."""

    @abstractmethod
    def label_path(self, image_id: str) -> Path:
        """Return the path of an image's mask."""

    @abstractmethod
    def unused(self) -> list[str]:
        """Return a line for each reason why files of the data are in no subset."""

    @abstractmethod
    def read_label(self, image_id: str) -> np.ndarray:
        """Read the mask of an image with all its layers (uint8 [L*H,W]; int16 of `wide` sets)."""

    @abstractmethod
    def has_layers(self, image_id: str) -> bool:
        """Return whether classes overlap in the mask of an image (`util.data.layers`)."""

    @abstractmethod
    def load(self, image_id: str, class_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (uint8 [H,W,3], RGB) and its mask of class ids (uint8 [H,W]).

        Of a mask with layers, it is the first one, and all pixels of `class_id` on top of it. Of a
        `wide` data set, the mask is int16.

        Raises:
            UnreadableFile: one of them could not be read in `READ_ATTEMPTS` attempts, or their
                sizes differ.
            UserError: the cache cannot be written.
        """

    @abstractmethod
    def read_pair(self, image_id: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Read an image, its mask and the height of both before the image was reduced.

        The image is reduced if it is large (`read_reduced`), the mask is not. Raises
        `UnreadableFile` if one of them cannot be read, or their sizes differ.
        """

    @abstractmethod
    def images_on_disk(self) -> set[str]:
        """Return the ids of the images in the folder, with or without a mask."""

    @abstractmethod
    def image_ids(self) -> list[str]:
        """Return the ids of the subset that have a mask, in the published order.

        - PASCAL train: SBD's `train_noval`, then the further ids of VOC `train`; val: VOC `val`.
        - COCO: every image with a mask, sorted.
        - Custom: the ids of `train.txt` or `val.txt`; without that file as COCO.
        - A mix: those of its data sets in turn.

        Raises `UserError` if an id list or a listed mask is missing, or there are no ids.
        """

    def decode(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Read an image and all layers of its mask (uint8 [L*H,W]), in one attempt, uncached.

        Both are reduced if the image is large. Raises `UnreadableFile` as `read_pair`.
        """
        image, label, height = self.read_pair(image_id)
        if len(image) == height:
            return image, label
        layers = label.reshape(-1, height, label.shape[1])
        return image, np.concatenate([resize_label(layer, image.shape[:2]) for layer in layers])

    def find_images(self, ids: list[str], missing: str = "error") -> tuple[list[str], list[str]]:
        """Return the ids whose image is on disk, in order, and a line if images were left out.

        `missing` is `Data.missing`: 'skip' leaves out absent images. 'error' raises `UserError`
        naming the first absent image, and how many there are.
        """
        on_disk = self.images_on_disk()
        absent = [i for i in ids if i not in on_disk]
        if not absent:
            return ids, []
        if missing == "error":
            raise UserError(
                f"{self.image_path(absent[0])}: no such image ({len(absent)} of the {len(ids)}"
                " listed are absent); unpack them, or set Data.missing=skip to leave them out"
            )
        line = f"left out {len(absent)} of {len(ids)} listed images: not on disk"
        return [i for i in ids if i in on_disk], [line]


class Source(AnySource):
    """A data set in the layout of its own download.

    - PASCAL: `data_root` is `.../VOCdevkit2012/VOC2012` with `JPEGImages`, `SegmentationClassAug`
      and `ImageSets/Segmentation`; `sbd_train_noval.txt` is beside `VOC2012`.
    - COCO: `data_root` is `.../MSCOCO2014` with `{train,val}2014`, and masks in
      `masks/{train,val}2014` (written by `util.data.prepare`) or `annotations/{train,val}2014` (in
      BAM's download). Without `{train,val}2014`, the same folders of 2017 are used.
    - Custom: `data_root` has `images` (JPEG, PNG, WebP, BMP or TIFF), `masks` (PNG), `classes.txt`
      and, if the subsets differ, `train.txt` and `val.txt`. Where classes overlap, a mask has
      several layers (`util.data.layers`).

    `images` and `masks` are the folders of the images ('train' or 'val') and of their masks.
    `classes` is the number of classes, background not counted; only 'custom' needs it as an
    argument. `cache` is a folder for decoded images and masks; '' caches nothing. Raises
    `UserError` if the data set or the subset is unknown, or a folder is missing.
    """

    def __init__(
        self,
        data_root: str | Path,
        data_set: str,
        subset: str,
        classes: int | None = None,
        cache: str = "",
    ) -> None:
        if subset not in SUBSETS:
            raise UserError(f"subset is {subset!r}: use one of {', '.join(SUBSETS)}")
        self.root, self.data_set, self.subset = Path(data_root), data_set, subset
        self.cache = Path(cache) if cache else None
        if self.cache:
            outputs = Outputs(self.cache, "cache", "Data.cache")
            outputs.claim([], alone=True)
            with suppress(OSError):  # reported at the first image
                outputs.mark()
        if not self.root.is_dir():
            remedy = "arrange the data as docs/data.md says, or set Data.data_root"
            raise UserError(f"Data.data_root {self.root}: no such folder; {remedy}")
        if data_set == "pascal":
            self.images, self.masks = self.root / "JPEGImages", self.root / "SegmentationClassAug"
        elif data_set == "coco":
            years = [y for y in ("2014", "2017") if (self.root / f"{subset}{y}").is_dir()]
            name = subset + (years or ["2014"])[0]
            self.images = self.root / name
            prepared, published = (self.root / f / name for f in ("masks", "annotations"))
            use_published = published.is_dir() and not prepared.is_dir()
            self.masks = published if use_published else prepared
        elif data_set == "custom":
            self.images, self.masks = self.root / "images", self.root / "masks"
        else:
            raise UserError(f"Data.data_set is {data_set!r}: use pascal, coco or custom")
        self.classes = classes or len(CLASSES[data_set])
        self.wide = is_wide(self.classes)
        self.parts = {"": self}
        self.tables = {"": np.arange(max(256, self.classes + 1))}
        self._layered: dict[str, bool] = {}
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; {self._remedy(folder)}")

    def _remedy(self, folder: Path) -> str:
        if self.data_set == "coco" and folder == self.masks:
            return f"run {_PREPARE_COCO}"
        page = "custom_data" if self.data_set == "custom" else "data"
        return f"arrange the data as docs/{page}.md says, or set Data.data_root"

    @cached_property
    def _images(self) -> Listing:
        """What is in the folder of the images. One look there is faster than one per file."""
        return list_pictures(self.images, SUFFIXES if self.data_set == "custom" else (".jpg",))

    @cached_property
    def _masks(self) -> Listing:
        return list_pictures(self.masks, (".png",))

    def image_path(self, image_id: str) -> Path:
        """See `AnySource.image_path`."""
        return self.images / self._images.names.get(image_id, f"{image_id}.jpg")

    def label_path(self, image_id: str) -> Path:
        """See `AnySource.label_path`."""
        return self.masks / self._masks.names.get(image_id, f"{image_id}.png")

    def unused(self) -> list[str]:
        """See `AnySource.unused`."""
        lines, masks = [*self._images.unused, *self._masks.unused], self._masks.names
        bare = [name for i, name in self._images.names.items() if i not in masks]
        lines += not_used(self.images, "images without a mask", bare)
        lists = [self.root / f"{subset}.txt" for subset in SUBSETS]
        if self.data_set == "custom" and all(path.exists() for path in lists):
            listed = {image_id for path in lists for image_id in read_ids(path)}
            unlisted = [name for i, name in masks.items() if i not in listed]
            lines += not_used(self.masks, "masks that neither list names", unlisted)
        return lines

    def read_label(self, image_id: str) -> np.ndarray:
        """See `AnySource.read_label`."""
        return read_label(self.label_path(image_id), wide=self.wide)

    def has_layers(self, image_id: str) -> bool:
        """See `AnySource.has_layers`."""
        if image_id not in self._layered:
            self.load(image_id)
        return self._layered[image_id]

    def load(self, image_id: str, class_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `AnySource.load`."""
        image, label = self._load(image_id)
        self._layered[image_id] = len(label) > len(image)
        return image, layer_with(label, image.shape[0], class_id)

    def _load(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        if self.cache is None:
            return self._decode_with_retries(image_id)
        path = self.cache / f"{image_id}{'.wide' if self.wide else ''}.npy"
        sources = (self.image_path(image_id), self.label_path(image_id))
        stamp = b""
        try:
            stamp = b"".join(map(file_version, sources))
            with open(path, "rb") as file:
                file.seek(-len(stamp), os.SEEK_END)
                if file.read() == stamp:
                    file.seek(0)
                    return self._unstack(np.load(file))
        except (OSError, ValueError, EOFError):
            pass  # absent or damaged: decode the sources
        image, label = self._decode_with_retries(image_id)

        def write(file: BinaryIO) -> None:
            np.save(file, _stack(image, label))
            file.write(stamp)

        try:
            atomic_write(path, write, durable=False)
        except OSError as error:
            raise unwritable(path, error, "set Data.cache to another folder") from None
        return image, label

    def _unstack(self, stacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Undo `_stack`."""
        width = stacked.shape[-1]
        height = stacked.shape[1] if stacked.ndim == 3 else len(stacked) // 4
        rows = stacked.reshape(-1, width)
        image, label = rows[: 3 * height].reshape(height, width, 3), rows[3 * height :]
        if self.wide:  # of two bytes a pixel
            label = label.reshape(-1).view(np.int16).reshape(-1, width)
        return image, label

    def _decode_with_retries(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(READ_ATTEMPTS - 1):
            try:
                return self.decode(image_id)
            except UnreadableFile:
                time.sleep(_PAUSE)
        return self.decode(image_id)

    def read_pair(self, image_id: str) -> tuple[np.ndarray, np.ndarray, int]:
        """See `AnySource.read_pair`."""
        image, (height, width) = read_reduced(self.image_path(image_id))
        label = self.read_label(image_id)
        rows, columns = label.shape
        has_layers = self.data_set == "custom" and rows > height and rows % height == 0
        if columns != width or (rows != height and not has_layers):
            raise UnreadableFile(
                f"{self.label_path(image_id)}: the mask is {columns}x{rows} pixels"
                f" and its image {width}x{height}; give both the same size"
            )
        return image, label, height

    def images_on_disk(self) -> set[str]:
        """See `AnySource.images_on_disk`."""
        return set(self._images.names)

    @property
    def list_path(self) -> Path:
        """The file with the ids of the subset that a custom data set may have."""
        return self.root / f"{self.subset}.txt"

    def mask_versions(self, ids: list[str]) -> list[str]:
        """Return what changes with a mask: size and time stamp. Nothing for published data sets."""
        if self.data_set != "custom":
            return []
        files = [self.label_path(i).stat() for i in ids]
        return [f"{file.st_size} {file.st_mtime_ns}" for file in files]

    def image_ids(self) -> list[str]:
        """See `AnySource.image_ids`."""
        listed = self.list_path
        if self.data_set == "custom":
            require_case(listed)
        if self.data_set == "custom" and os.path.lexists(listed):
            ids = read_ids(listed)
            require_listed(listed, ids, self._masks.names)
            return ids
        if self.data_set != "pascal":
            ids = sorted(self._masks.names)
            if not ids:
                raise UserError(f"{self.masks}: contains no PNG; {self._remedy(self.masks)}")
            return ids
        ids = read_ids(self.root / "ImageSets" / "Segmentation" / f"{self.subset}.txt")
        if self.subset == "train":
            # A dict keeps the order, and an id of both lists at its first place.
            sbd = read_ids(Path(os.path.abspath(self.root)).parent / "sbd_train_noval.txt")
            ids = list(dict.fromkeys(sbd + ids))
        if not ids:
            raise UserError(f"{self.root}: its {self.subset} list is empty; copy ImageSets again")
        return ids


def _stack(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Make one array of an image and its mask: the rows of both, in bytes.

    It is [4H,W] for a mask of one byte a pixel and one layer, as PASCAL and COCO have, else
    [3+n,H,W] for one of n bytes a pixel, layers and all.
    """
    height, width = image.shape[:2]
    rows = image.reshape(-1, width), label.view(np.uint8).reshape(-1, width)
    stacked = np.concatenate(rows)
    return stacked if len(stacked) == 4 * height else stacked.reshape(-1, height, width)


def subsets(data: DataSection) -> tuple[str, ...]:
    """Return the subsets that a config's `Data` section uses."""
    return ("val",) if data.trained_on else SUBSETS
