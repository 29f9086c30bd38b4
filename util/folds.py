"""Folds: the classes of a data set, and which of them are novel."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

from model.constants import IGNORE
from util.class_names import COCO_NAMES, canonical_name, warn_of_names
from util.runtime.errors import UserError
from util.runtime.texts import read_lines, require_case

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

AnnotationKind = Literal["mask", "bbox", "scribble", "point"]
ANNOTATION_KINDS: tuple[str, ...] = get_args(AnnotationKind)
"""How supports may be labeled (`Data.ann_type`)."""

FOLDS = 4
"""Number of folds of PASCAL-5i and of COCO-20i."""

# Written out although mmseg has them: importing mmseg takes 5 s.
_PASCAL = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,"
    "person,pottedplant,sheep,sofa,train,tvmonitor"
)
_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)

CLASSES: dict[str, tuple[str, ...]] = {
    "pascal": tuple(_PASCAL.split(",")),
    "coco": tuple(_COCO.split(",")),
}
"""Data set -> class names in the order of their ids, which start at 1; 0 is background.

COCO's ids skip some numbers; ours do not, and keep the order.
"""

OWN_CLASSES = ("custom", "mix")
"""Data sets whose classes and folds are not published."""

IGNORED = "ignored"
"""What stands in the place of class 255 in a list of more than 254 classes."""

MAX_CLASSES = 1 << 15
"""Below this number, an id fits the masks of 16 bits as we read them."""


def is_wide(classes: int) -> bool:
    """Return whether this number of classes, or of base classes, does not fit below 255."""
    return classes >= IGNORE


def around_255(items: tuple[T, ...], ignored: T) -> tuple[T, ...]:
    """Return the items so that none is in place 255, counted from 1; there, `ignored` is put."""
    return (*items[: IGNORE - 1], ignored, *items[IGNORE - 1 :]) if is_wide(len(items)) else items


@dataclass(frozen=True)
class Fold:
    """The classes of a data set, and which of them are novel.

    Attributes:
        names: class names; class id = position + 1.
        novel: ids of the classes that are never trained on, ascending.
        trained_on: the fold that the model was trained on, if it is tested on another data set;
            None: the model is trained on this fold.
        unused: ids of the classes that are neither novel nor trained on; 255 is no class.
    """

    names: tuple[str, ...]
    novel: tuple[int, ...]
    trained_on: "Fold | None" = None
    unused: tuple[int, ...] = ()

    @property
    def learned(self) -> "Fold":
        """The fold that the model is trained on; the base learner knows its base classes."""
        return self.trained_on or self

    @property
    def base(self) -> tuple[int, ...]:
        """Ids of the classes that are trained on, ascending: all but the novel and unused ones."""
        others = {*self.novel, *self.unused, IGNORE}
        return tuple(c for c in range(1, len(self.names) + 1) if c not in others)

    @property
    def channels(self) -> tuple[int, ...]:
        """Ids of the base classes by their number in the base learner, from 1.

        No class has the number 255, as 255 is ignored in labels. If there are so many, the id there
        is 255, and the channel of the base learner learns nothing.
        """
        return around_255(self.base, IGNORE)

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names of the base classes, in the order of `channels`."""
        return tuple(self.names[c - 1] for c in self.channels)

    def classes(self, subset: str) -> tuple[int, ...]:
        """Return the ids of the classes that episodes segment: base in 'train', novel in 'val'.

        Without a novel class, as a mix of data sets may be, they are the base classes in both.
        """
        return self.base if subset == "train" or not self.novel else self.novel

    def base_table(self) -> "np.ndarray":
        """Return the table that turns labels into labels of the base learner.

        It is uint8 [256], and longer or int16 for more classes than fit. `base_table()[label]`
        numbers base classes 1, 2, ... as `channels`, keeps 255, and is 0 elsewhere. It replaces the
        `base_annotation/` folders of the published code. If the model was trained on another data
        set, the numbers are those of that set's base classes of the same name (`canonical_name`),
        and 0 for the others.
        """
        import numpy as np  # not for `--help`: it takes a quarter of a second

        kind = np.int16 if is_wide(len(self.learned.channels)) else np.uint8
        table = np.zeros(max(256, len(self.names) + 1), kind)
        if self.trained_on is None:
            table[list(self.channels)] = np.arange(1, len(self.channels) + 1)
        else:
            names = map(canonical_name, self.trained_on.base_names)
            numbers = {name: number for number, name in enumerate(names, 1)}
            for c in self.base:
                table[c] = numbers.get(canonical_name(self.names[c - 1]), 0)
        table[IGNORE] = IGNORE
        return table


def published_fold(data_set: str, split: int, use_split_coco: bool = True) -> Fold:
    """Return fold 0 to 3 of PASCAL-5i ('pascal') or COCO-20i ('coco'), as published.

    The novel classes of fold i are 5i+1 to 5i+5 in PASCAL-5i and i+1, i+5, i+9, ... in COCO-20i;
    without `use_split_coco` 20i+1 to 20i+20. Raises `UserError` if the data set or the fold is
    unknown.
    """
    if data_set not in CLASSES:
        raise UserError(f"Data.data_set is {data_set!r}: use one of {', '.join(CLASSES)}")
    if split not in range(FOLDS):
        raise UserError(f"Data.split is {split!r}: use 0, 1, 2 or 3")
    names = CLASSES[data_set]
    count = len(names)
    if data_set == "coco" and use_split_coco:
        return Fold(names, tuple(range(split + 1, count + 1, FOLDS)))
    size = count // FOLDS
    return Fold(names, tuple(range(size * split + 1, size * (split + 1) + 1)))


def coco_to_pascal(split: int, use_split_coco: bool = True) -> Fold:
    """Return the fold of PASCAL for a model that was trained on a fold of COCO-20i.

    Its novel classes are those that are novel in the fold of COCO: six, four, six and four of the
    twenty in folds 0 to 3. The protocol is from Boudiaf et al., "Few-Shot Segmentation Without
    Meta-Learning: A Good Transductive Inference Is All You Need?", CVPR 2021 (RePRI).
    """
    learned = published_fold("coco", split, use_split_coco)
    novel_in_coco = {learned.names[c - 1] for c in learned.novel}
    names = CLASSES["pascal"]
    novel = (c for c, n in enumerate(names, 1) if COCO_NAMES.get(n, n) in novel_in_coco)
    return Fold(names, tuple(novel), learned)


def other_fold(
    names: tuple[str, ...], novel: Sequence[str], known: tuple[str, ...], overlap: str = "refuse"
) -> Fold:
    """Return the fold of a test on a data set that the model was not trained on.

    It tests the classes `novel` of the data set's `names`, without any all of them, but none that
    has the name of one of the classes `known`, the base classes of the model in the order of its
    channels. With the `overlap` 'remove', such classes are left out; else they are an error. Raises
    `UserError` in that case, or if `novel` names an unknown class, or no class is left to test.
    """
    _require_names("Data.novel", novel, names)
    trained = set(map(canonical_name, known))
    place = {name: number for number, name in enumerate(names, 1) if number != IGNORE}
    asked = [name for name in place if not novel or name in novel]
    tested = [name for name in asked if canonical_name(name) not in trained]
    if seen := ", ".join(name for name in asked if name not in tested):
        if overlap == "refuse":
            mistake = f"the model was trained on {seen}, which this config tests as novel"
            remedy = "name others in Data.novel, or set Data.overlap=remove to leave them out"
            raise UserError(f"Data.overlap refuse: {mistake}; {remedy}")
        if not tested:
            mistake = f"the model was trained on every class that is to be tested ({seen})"
            raise UserError(f"Data.overlap remove: {mistake}; name others in Data.novel")
    return Fold(names, tuple(place[name] for name in tested), Fold(known, ()))


@dataclass(frozen=True)
class MixedSet:
    """A data set of a mix; the ids of its images there begin with `name` and a slash."""

    name: str
    kind: str  # pascal, coco or custom
    root: Path

    def class_names(self) -> tuple[str, ...]:
        """Return its own class names in the order of its ids; raises as `read_classes`."""
        return CLASSES.get(self.kind) or read_classes(self.root)


def mixed_sets(mix: Sequence[str]) -> list[MixedSet]:
    """Return the data sets of `Data.mix`, such as `pascal:FOLDER` and `custom:FOLDER`.

    PASCAL and COCO have the name of their kind, others that of their folder. Raises `UserError` if
    an entry is of another form, or two have one name.
    """
    sets: dict[str, MixedSet] = {}
    for entry in mix:
        kind, _, folder = entry.partition(":")
        if kind not in (*CLASSES, "custom") or not folder:
            remedy = "write pascal:FOLDER, coco:FOLDER or custom:FOLDER"
            raise UserError(f"Data.mix: {entry!r} names no data set; {remedy}")
        folder = os.path.expanduser(folder)
        name = kind if kind in CLASSES else os.path.basename(os.path.abspath(folder))
        if name in sets:
            raise UserError(f"Data.mix: two data sets are called {name!r}; rename a folder")
        sets[name] = MixedSet(name, kind, Path(folder))
    return list(sets.values())


def without_folders(mix: Sequence[str]) -> list[str]:
    """Return the entries of `Data.mix` as `kind:name`, which are entries again; raises as above."""
    return [f"{each.kind}:{each.name}" for each in mixed_sets(mix)]


def united_names(sets: Sequence[MixedSet]) -> tuple[str, ...]:
    """Return the class names of a mix: those of each set in turn, each class once.

    Names are of one class if `canonical_name` says so; the first set that has it spells it.
    """
    names: dict[str, str] = {}
    for name in (name for each in sets for name in each.class_names() if name != IGNORED):
        names.setdefault(canonical_name(name), name)
    return around_255(tuple(names.values()), IGNORED)


class _FoldKeys(Protocol):
    """The keys of a config's `Data` section that name a fold."""

    @property
    def data_set(self) -> str: ...
    @property
    def data_root(self) -> str: ...
    @property
    def split(self) -> int: ...
    @property
    def use_split_coco(self) -> bool: ...
    @property
    def trained_on(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def novel(self) -> tuple[str, ...]: ...
    @property
    def base(self) -> tuple[str, ...]: ...
    @property
    def known(self) -> tuple[str, ...]: ...
    @property
    def overlap(self) -> str: ...
    @property
    def mix(self) -> tuple[str, ...]: ...


def fold_of(data: _FoldKeys) -> Fold:
    """Return the fold of a config's `Data` section.

    For a custom data set without `classes`, the names are read from its `classes.txt`; those of the
    fold's novel and base classes, where not given, from `novel_<split>.txt` and `base.txt`. Without
    that one, every class that is not novel is a base class. A mix has the classes of all its sets
    (`united_names`), and need not have a novel one. Raises `UserError` if the data set, the
    fold or a class is unknown, a base class is novel, no class is left to train on, a list of names
    cannot be used, or as `other_fold`.
    """
    if data.trained_on == "coco":
        return coco_to_pascal(data.split, data.use_split_coco)
    if data.trained_on:
        names, novel = CLASSES.get(data.data_set, ()), data.novel
        if not names:
            names, (novel, _) = data.classes or read_classes(data.data_root), fold_names(data)
            _require_names(_place("novel", data), novel, names)
        return other_fold(names, novel, data.known, data.overlap)
    if data.data_set not in OWN_CLASSES:
        return published_fold(data.data_set, data.split, data.use_split_coco)
    own = united_names(mixed_sets(data.mix)) if data.mix and not data.classes else data.classes
    names, (novel, base) = own or read_classes(data.data_root), fold_names(data)
    if data.data_set == "custom" and len(names) == 1:
        what = f"{data.data_root}: has a single class, {names[0]!r}, which cannot be split into"
        remedy = "label a second class, or only test on it (Data.trained_on)"
        raise UserError(f"{what} classes to train on and to hold out; {remedy}")
    place = {name: number for number, name in enumerate(names, 1) if number != IGNORE}
    _require_names(_place("novel", data), novel, names)
    _require_names(_place("base", data), base, names)
    if both := set(novel) & set(base):
        raise UserError(f"Data.base: {min(both)!r} is novel, too; remove it from one of the two")
    if not place.keys() - set(novel):
        raise UserError("Data.novel leaves no class to train on; remove a name")
    unused = place.keys() - {*novel, *base} if base else set()
    held_out, left = (tuple(sorted(place[name] for name in each)) for each in (novel, unused))
    return Fold(names, held_out, unused=left)


def fold_names(data: _FoldKeys) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the novel and of the base classes of a custom fold; (): all others.

    They are those of `novel` and `base`, else of the files that `fold_of` names; a mix has no such
    files. Of a test with `trained_on`, only the former: the classes to test, () for all. Raises
    `UserError` if there is no novel class otherwise, or a file cannot be used.
    """
    if data.data_set == "mix":
        return data.novel, data.base
    if data.novel:  # a fold of one's own, which the files do not belong to
        return data.novel, () if data.trained_on else data.base
    path = _name_file("novel", data)
    novel = _read_names(path) if os.path.lexists(path) else ()
    if data.trained_on:
        return novel, ()
    if not novel:
        what = f"Data.novel names no class, and there is no {path}"
        raise UserError(f"{what}; name the classes that this fold holds out")
    path = _name_file("base", data)
    return novel, data.base or (_read_names(path) if os.path.lexists(path) else ())


def _name_file(key: str, data: _FoldKeys) -> Path:
    """Return the file of names that stands for a key of a custom fold which names nothing.

    Raises `UserError` if its name is written in another case.
    """
    name = f"novel_{data.split}.txt" if key == "novel" else "base.txt"
    path = Path(data.data_root, name)
    require_case(path)
    return path


def _place(key: str, data: _FoldKeys) -> str:
    """Return where the names of a key come from: the key, or a file."""
    is_given = data.novel or data.data_set == "mix" or (key == "base" and data.base)
    return f"Data.{key}" if is_given else str(_name_file(key, data))


def _require_names(place: str, given: Sequence[str], names: Sequence[str]) -> None:
    """Raise `UserError` for the first name, given in a key or a file, that is no class."""
    for name in given:
        if name not in names or name == IGNORED:
            known = ", ".join(names) if len(names) < 100 else f"{len(names)} others"
            raise UserError(f"{place}: no class is named {name!r}; there is {known}")


def read_classes(data_root: str | Path) -> tuple[str, ...]:
    """Read the class names of a custom data set: one per line, in the order of their ids.

    255 is ignored in masks, so that no class has this id: line 255 is `IGNORED`. Raises `UserError`
    if it is not, or `classes.txt` is missing, unreadable, empty, too long, or names a class twice.
    """
    path = Path(data_root) / "classes.txt"
    names = _read_names(path)
    if len(names) >= MAX_CLASSES:
        raise UserError(f"{path}: names {len(names)} classes; write at most {MAX_CLASSES - 1}")
    if is_wide(len(names)) and names[IGNORE - 1] != IGNORED:
        what = f"{path}: line {IGNORE} is {names[IGNORE - 1]!r}, but {IGNORE} means ignored"
        raise UserError(f"{what}; write {IGNORED!r} there, and give that class the next id")
    warn_of_names(str(path), names)
    return names


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(read_lines(path))
    except FileNotFoundError:
        require_case(path)
        remedy = "write the class names there, one a line, or set Data.data_root"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; put a text file of the names there") from None
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{path}: cannot be read ({reason}); check its permissions") from None
    if not names:
        raise UserError(f"{path}: names no class; write the class names there, one a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: names {twice!r} twice; merge the two or rename one")
    return names
