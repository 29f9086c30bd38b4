"""Where a data set's pictures and masks lie, and how they are read."""

import os
import time
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from util.config import DataSection
from util.data.image_io import Unreadable, read_image, read_label
from util.folds import CLASSES, fold_of
from util.runtime.errors import UserError
from util.runtime.files import atomic_write

SUBSETS = ("train", "val")

TRIES, PAUSE = 3, 0.1  # of reading a pair, and seconds between two: a network drive may stutter

_PREPARE_COCO = "python -m util.data.prepare coco --coco DIR --out data, see docs/data.md"


class Source:
    """A data set on disk, in the layout of its own download.

    PASCAL: `data_root` is `.../VOCdevkit2012/VOC2012` with `JPEGImages`, `SegmentationClassAug` and
    `ImageSets/Segmentation`; `sbd_train_noval.txt` lies beside `VOC2012`. COCO: `data_root` is
    `.../MSCOCO2014` with `{train,val}2014` and the masks in `masks/{train,val}2014` (as
    `util.data.prepare` writes them) or in `annotations/{train,val}2014` (as BAM's download has
    them); where `{train,val}2014` is absent, `{train,val}2017` and the masks of that name.

    Custom: `data_root` holds `images` (JPEG or PNG), `masks` (PNG), `classes.txt` and, where the
    subsets are to differ, `train.txt` and `val.txt`.

    Args:
        data_root: the folder.
        data_set: 'pascal', 'coco' or 'custom'.
        subset: 'train' or 'val'.
        classes: how many classes there are; for 'custom', the others know it.
        cache: folder for decoded images and masks; '' keeps none.

    Raises:
        UserError: when a folder is missing.
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
        if not self.root.is_dir():
            raise UserError(
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
        elif data_set == "custom":
            self.images, self.masks = self.root / "images", self.root / "masks"
        else:
            raise UserError(f"Data.data_set is {data_set!r}: use pascal, coco or custom")
        self.classes = classes or len(CLASSES[data_set])
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; {self._remedy(folder)}")

    def _remedy(self, folder: Path) -> str:
        if self.data_set == "coco" and folder == self.masks:
            return f"run {_PREPARE_COCO}"
        page = "custom_data" if self.data_set == "custom" else "data"
        return f"lay the data out as docs/{page}.md says, or set Data.data_root"

    def image_path(self, image_id: str) -> Path:
        """Returns the path of an image's picture."""
        if self.data_set == "custom":
            return self.images / self._pictures.get(image_id, f"{image_id}.jpg")
        return self.images / f"{image_id}.jpg"

    @cached_property
    def _pictures(self) -> dict[str, str]:
        """Id -> file name, of one look at the folder, not one per file."""
        suffixes = (".jpg", ".jpeg", ".png") if self.data_set == "custom" else (".jpg",)
        pictures: dict[str, str] = {}
        for name in sorted(os.listdir(self.images)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in suffixes:
                continue
            if stem in pictures:
                raise UserError(
                    f"{self.images / name}: {pictures[stem]} has the same name; rename one, and"
                    " its mask"
                )
            pictures[stem] = name
        return pictures

    def label_path(self, image_id: str) -> Path:
        """Returns the path of an image's mask."""
        return self.masks / f"{image_id}.png"

    def load(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image (uint8 [H,W,3], RGB) and its mask of class ids (uint8 [H,W]).

        Raises:
            Unreadable: one cannot be read, `TRIES` times, or their sizes differ.
            UserError: the cache cannot be written.
        """
        if self.cache is None:
            return self._decode_again(image_id)
        kept = self.cache / f"{image_id}.npy"
        sources = (self.image_path(image_id), self.label_path(image_id))
        made_from = 0  # the stamp of the files, which the copy bears too: whatever the clock says
        try:
            made_from = max(path.stat().st_mtime_ns for path in sources)
            if kept.stat().st_mtime_ns == made_from:
                stacked = np.load(kept)
                height = len(stacked) // 4
                return stacked[: 3 * height].reshape(height, -1, 3), stacked[3 * height :]
        except (OSError, ValueError, EOFError):
            pass  # not there, or damaged: it is made from the files
        image, label = self._decode_again(image_id)
        # One array [4H,W]: the rows of the image, three values a pixel, then those of the mask.
        stacked = np.concatenate([image.reshape(-1, label.shape[1]), label])
        try:
            atomic_write(kept, partial(np.save, arr=stacked), durable=False)
            os.utime(kept, ns=(made_from, made_from))
        except OSError as error:
            raise UserError(
                f"{kept}: cannot be written ({error.strerror}); make room, or set Data.cache"
            ) from None
        return image, label

    def _decode_again(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """As `decode`, which gets more than one chance."""
        for _ in range(TRIES - 1):
            try:
                return self.decode(image_id)
            except Unreadable:
                time.sleep(PAUSE)
        return self.decode(image_id)

    def decode(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """As `load`, from the files themselves."""
        image, label = read_image(self.image_path(image_id)), read_label(self.label_path(image_id))
        if image.shape[:2] != label.shape:
            raise Unreadable(
                f"{self.label_path(image_id)}: the mask is {label.shape[1]}x{label.shape[0]} pixels"
                f" and its image {image.shape[1]}x{image.shape[0]}; the two must have one size"
            )
        return image, label

    def images_on_disk(self) -> set[str]:
        """Returns the ids whose picture is there."""
        return set(self._pictures)

    def stamps(self, ids: list[str]) -> list[str]:
        """Returns what tells that a mask was changed; nothing for downloads, which do not."""
        if self.data_set != "custom":
            return []
        files = [self.label_path(i).stat() for i in ids]
        return [f"{file.st_size} {file.st_mtime_ns}" for file in files]

    def require(self, ids: list[str]) -> None:
        """Makes sure that every picture is there.

        Raises:
            UserError: naming the first that is not, and how many more.
        """
        there = self.images_on_disk()
        absent = [i for i in ids if i not in there]
        if absent:
            raise UserError(
                f"{self.image_path(absent[0])}: no such image ({len(absent)} of the {len(ids)}"
                " listed are absent); unpack them, or set Data.missing=skip to go without"
            )

    def image_ids(self) -> list[str]:
        """Returns the ids of the subset that have a mask, in the published order.

        PASCAL train: SBD `train_noval`, then the ids of VOC `train` not already there; val: VOC
        `val`. COCO: every image with a mask, sorted; custom too, or what `train.txt` and
        `val.txt` list.

        Raises:
            UserError: when an id list is missing or nothing is listed.
        """
        listed = self.root / f"{self.subset}.txt"
        if self.data_set == "custom" and listed.exists():
            ids = _read_ids(listed)
            for image_id in ids:
                if not self.label_path(image_id).is_file():
                    raise UserError(
                        f"{listed}: names {image_id}, which has no mask"
                        f" {self.label_path(image_id)}; add the mask or take the line out"
                    )
            return ids
        if self.data_set != "pascal":
            ids = sorted(name[:-4] for name in os.listdir(self.masks) if name.endswith(".png"))
            if not ids:
                raise UserError(f"{self.masks}: holds no PNG; {self._remedy(self.masks)}")
            return ids
        ids = _read_ids(self.root / "ImageSets" / "Segmentation" / f"{self.subset}.txt")
        if self.subset == "train":
            # dict: the order stays, an id of both lists keeps its first place.
            sbd = _read_ids(Path(os.path.abspath(self.root)).parent / "sbd_train_noval.txt")
            ids = list(dict.fromkeys(sbd + ids))
        if not ids:
            raise UserError(
                f"{self.root}: its {self.subset} list names no image; copy ImageSets again"
            )
        return ids


def subsets(data: DataSection) -> tuple[str, ...]:
    """Returns the subsets that a config's `Data` section uses."""
    return ("val",) if data.trained_on else SUBSETS


def open_source(data: DataSection, subset: str) -> Source:
    """Opens the data of a config's `Data` section for 'train' or 'val'.

    Raises:
        UserError: for 'train' where the model was trained on another data set.
    """
    if subset not in subsets(data):
        raise UserError(
            f"Data.trained_on {data.trained_on}: this config only tests; train with one of"
            f" config/{data.trained_on}/"
        )
    classes = len(fold_of(data).names)
    return Source(data.data_root, data.data_set, subset, classes, data.cache)


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such list; lay the data out as docs/data.md says, or set Data.data_root"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    ids = [line.strip() for line in lines if line.strip()]  # ids may hold spaces
    for image_id in ids:  # they become names of files, in `Data.cache` too
        if "/" in image_id or "\0" in image_id:
            raise UserError(f"{path}: {image_id!r} is no name of an image; take the line out")
    return ids
