"""Where a data set's pictures and masks lie, and how they are read."""

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

SUBSETS = ("train", "val")

_PREPARE_COCO = "python -m util.data.prepare coco --coco DIR --out data, see docs/data.md"


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture as RGB (uint8 [H,W,3]).

    Raises:
        ValueError: when the file is missing or no picture.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such image; check Data.data_root and that it was unpacked")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: cannot be read as an image; fetch or copy the file again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: str | Path) -> np.ndarray:
    """Reads a mask of class ids (uint8 [H,W]).

    The palette INDEX of a palette PNG is the class (VOC), or the value of a grayscale one (COCO).
    OpenCV is no help here: its grayscale read turns a palette into luminance.

    Raises:
        ValueError: when the file is missing, unreadable or holds no class ids (RGB, 16 bits, ...).
    """
    try:
        with Image.open(path) as mask:
            kind = f"{mask.format} of mode {mask.mode}"
            label = np.array(mask) if kind in ("PNG of mode P", "PNG of mode L") else None
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such mask; check Data.data_root and that it was unpacked"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{path}: cannot be read as a mask ({error}); fetch or copy the file again"
        ) from None
    if label is None:
        raise ValueError(
            f"{path}: is a {kind}; a mask must be an 8-bit palette or grayscale PNG of class ids,"
            " convert it"
        )
    return label


class Source:
    """A data set on disk, in the layout of its own download.

    PASCAL: `data_root` is `.../VOCdevkit2012/VOC2012` with `JPEGImages`, `SegmentationClassAug` and
    `ImageSets/Segmentation`; `sbd_train_noval.txt` lies beside `VOC2012`. COCO: `data_root` is
    `.../MSCOCO2014` with `{train,val}2014` and the masks in `masks/{train,val}2014` (as
    `util.data.prepare` writes them) or in `annotations/{train,val}2014` (as BAM's download has
    them); where `{train,val}2014` is absent, `{train,val}2017` and the masks of that name.

    Args:
        data_root: the folder.
        data_set: 'pascal' or 'coco'.
        subset: 'train' or 'val'.

    Raises:
        ValueError: when a folder is missing.
    """

    def __init__(self, data_root: str | Path, data_set: str, subset: str) -> None:
        if subset not in SUBSETS:
            raise ValueError(f"subset is {subset!r}: use one of {', '.join(SUBSETS)}")
        self.root, self.data_set, self.subset = Path(data_root), data_set, subset
        if not self.root.is_dir():
            raise ValueError(
                f"Data.data_root {self.root} is no folder: lay the data out as docs/data.md says,"
                " or set Data.data_root"
            )
        if data_set == "pascal":
            self.images, self.masks = self.root / "JPEGImages", self.root / "SegmentationClassAug"
        elif data_set == "coco":
            years = [y for y in ("2014", "2017") if (self.root / f"{subset}{y}").is_dir()]
            name = subset + (years or ["2014"])[0]
            self.images = self.root / name
            drawn, published = (self.root / f / name for f in ("masks", "annotations"))
            self.masks = drawn if drawn.is_dir() or not published.is_dir() else published
        else:
            raise ValueError(f"Data.data_set is {data_set!r}: use pascal or coco")
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                how = "lay the data out as docs/data.md says, or set Data.data_root"
                if data_set == "coco" and folder == self.masks:
                    how = f"run {_PREPARE_COCO}"
                raise ValueError(f"{folder}: no such folder; {how}")

    def image_path(self, image_id: str) -> Path:
        """Returns the path of an image's picture."""
        return self.images / f"{image_id}.jpg"

    def label_path(self, image_id: str) -> Path:
        """Returns the path of an image's mask."""
        return self.masks / f"{image_id}.png"

    def load(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image (uint8 [H,W,3], RGB) and its mask of class ids (uint8 [H,W]).

        Raises:
            ValueError: when one cannot be read or their sizes differ.
        """
        image, label = read_image(self.image_path(image_id)), read_label(self.label_path(image_id))
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{self.label_path(image_id)}: the mask is {label.shape[1]}x{label.shape[0]} pixels"
                f" and its image {image.shape[1]}x{image.shape[0]}; the two must have one size"
            )
        return image, label

    def images_on_disk(self) -> set[str]:
        """Returns the ids whose picture is there (one look at the folder, not one per file)."""
        return {name[:-4] for name in os.listdir(self.images) if name.endswith(".jpg")}

    def require(self, ids: list[str]) -> None:
        """Makes sure that every picture is there.

        Raises:
            ValueError: naming the first that is not, and how many more.
        """
        there = self.images_on_disk()
        absent = [i for i in ids if i not in there]
        if absent:
            raise ValueError(
                f"{self.image_path(absent[0])}: no such image ({len(absent)} of the {len(ids)}"
                " listed are absent); unpack them, or set Data.missing=skip to go without"
            )

    def image_ids(self) -> list[str]:
        """Returns the ids of the subset that have a mask, in the published order.

        PASCAL train: SBD `train_noval`, then the ids of VOC `train` not already there; val: VOC
        `val`. COCO: every image with a mask, sorted.

        Raises:
            ValueError: when an id list is missing or nothing is listed.
        """
        if self.data_set == "coco":
            ids = sorted(name[:-4] for name in os.listdir(self.masks) if name.endswith(".png"))
            if not ids:
                raise ValueError(f"{self.masks}: holds no PNG; run {_PREPARE_COCO}")
            return ids
        ids = _read_ids(self.root / "ImageSets" / "Segmentation" / f"{self.subset}.txt")
        if self.subset == "train":
            # dict: the order stays, an id of both lists keeps its first place.
            sbd = _read_ids(Path(os.path.abspath(self.root)).parent / "sbd_train_noval.txt")
            ids = list(dict.fromkeys(sbd + ids))
        if not ids:
            raise ValueError(
                f"{self.root}: its {self.subset} list names no image; copy ImageSets again"
            )
        return ids


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"{path}: no such list; lay the data out as docs/data.md says, or set Data.data_root"
        )
    return path.read_text(encoding="utf-8").split()
