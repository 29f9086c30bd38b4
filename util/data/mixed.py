"""The data of a config: one data set, or a mix of several, which is used as one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from model.constants import IGNORE
from util.class_names import canonical_name
from util.config import DataSection
from util.data.image_io import UnreadableFile
from util.data.source import AnySource, Source, subsets
from util.folds import IGNORED, Fold, MixedSet, fold_of, is_wide, mixed_sets
from util.runtime.errors import UserError


class MixedSource(AnySource):
    """The data sets of a mix as one: image ids `<set>/<id>`, and masks of the ids of the mix.

    Raises `UserError` as `Source`, or if a set has a class that the mix has not, or one twice.
    """

    def __init__(self, sets: Sequence[MixedSet], fold: Fold, subset: str, cache: str) -> None:
        self.subset, self.classes = subset, len(fold.names)
        self.wide = is_wide(self.classes)
        ids = {canonical_name(name): number for number, name in enumerate(fold.names, 1)}
        self.parts, self.tables = {}, {}
        for each in sets:
            names, folder = each.class_names(), str(Path(cache, each.name)) if cache else ""
            part = Source(each.root, each.kind, subset, len(names), folder)
            table = np.zeros(max(256, len(names) + 1), np.int16 if self.wide else np.uint8)
            for number, name in enumerate(names, 1):
                if name == IGNORED:
                    continue
                if not (own := ids.get(canonical_name(name))) or own in table:
                    what = f"{each.root}: class {name!r} is twice there, or not in Data.classes"
                    raise UserError(f"{what}; rename it, or remove Data.classes")
                table[number] = own
            table[IGNORE] = IGNORE
            if each.kind == "custom" and not fold.novel and not part.list_path.is_file():
                what = f"{part.list_path}: no such list, and no class of the mix is novel"
                raise UserError(f"{what}; divide the images into train.txt and val.txt")
            self.parts[each.name], self.tables[each.name] = part, table

    def _split(self, image_id: str) -> tuple[Source, str, np.ndarray]:
        """Return the data set of an image, its id there, and the table of the set."""
        name, _, own = image_id.partition("/")
        return self.parts[name], own, self.tables[name]

    def image_path(self, image_id: str) -> Path:
        """See `AnySource.image_path`."""
        part, own, _ = self._split(image_id)
        return part.image_path(own)

    def label_path(self, image_id: str) -> Path:
        """See `AnySource.label_path`."""
        part, own, _ = self._split(image_id)
        return part.label_path(own)

    def read_label(self, image_id: str) -> np.ndarray:
        """See `AnySource.read_label`."""
        part, own, _ = self._split(image_id)
        return self._translated(image_id, part.read_label(own))

    def read_pair(self, image_id: str) -> tuple[np.ndarray, np.ndarray, int]:
        """See `AnySource.read_pair`."""
        part, own, _ = self._split(image_id)
        image, label, height = part.read_pair(own)
        return image, self._translated(image_id, label), height

    def load(self, image_id: str, class_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `AnySource.load`."""
        part, own, table = self._split(image_id)
        there = np.flatnonzero(table == class_id).tolist() if class_id else []
        image, label = part.load(own, there[0] if there else None)
        return image, self._translated(image_id, label)

    def has_layers(self, image_id: str) -> bool:
        """See `AnySource.has_layers`."""
        part, own, _ = self._split(image_id)
        return part.has_layers(own)

    def _translated(self, image_id: str, label: np.ndarray) -> np.ndarray:
        part, _, table = self._split(image_id)
        highest = label.max(initial=0, where=label != IGNORE)
        if highest > part.classes:
            what = f"{self.label_path(image_id)}: contains label {highest}"
            raise UnreadableFile(f"{what}; there are classes 1 to {part.classes}, 0 and {IGNORE}")
        return table[label]

    def unused(self) -> list[str]:
        """See `AnySource.unused`."""
        return [line for n, part in self.parts.items() for line in with_name(n, part.unused())]

    def images_on_disk(self) -> set[str]:
        """See `AnySource.images_on_disk`."""
        return {
            id_in_mix(name, i) for name, part in self.parts.items() for i in part.images_on_disk()
        }

    def image_ids(self) -> list[str]:
        """See `AnySource.image_ids`."""
        return [id_in_mix(name, i) for name, part in self.parts.items() for i in part.image_ids()]


def id_in_mix(name: str, image_id: str) -> str:
    """Return the id of an image of a data set of this name; '' is the only one."""
    return f"{name}/{image_id}" if name else image_id


def with_name(name: str, lines: Iterable[str]) -> list[str]:
    """Return lines with the name of their data set before them; '' is none."""
    return [f"{name}: {line}" if name else line for line in lines]


def open_source(data: DataSection, subset: str) -> AnySource:
    """Open the data set of a config's `Data` section for 'train' or 'val'.

    Raises `UserError` if a folder is missing, or 'train' is asked for although the model was
    trained on another data set.
    """
    if subset not in subsets(data):
        which = "coco/" if data.trained_on == "coco" else ", without that key"
        remedy = f"train with one of config/{which}"
        raise UserError(f"Data.trained_on {data.trained_on}: this config only tests; {remedy}")
    fold = fold_of(data)
    if data.data_set == "mix":
        return MixedSource(mixed_sets(data.mix), fold, subset, data.cache)
    return Source(data.data_root, data.data_set, subset, len(fold.names), data.cache)
