"""What the stages of a run have seen of the novel classes, counted in the lists themselves.

    python -m util.data.leaks config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

prints it for a run whose two stages are trained with this config. test.py records it for the
checkpoint that it tests. Pixels of label 255 are not counted: no mask says what they show.
"""

from util.config.arguments import check_first, config_argument

if __name__ == "__main__":
    check_first(config_argument, __doc__)  # before NumPy and OpenCV: together they take a second

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from util.class_names import canonical_name
from util.config import Config, DataSection
from util.data.base_images import list_base_images
from util.data.episodes import EpisodeSampler, draw_of
from util.data.lists import FoldList, list_of, list_on_disk
from util.data.mixed import id_in_mix, open_source
from util.data.source import AnySource
from util.data.tables import Table, load_table
from util.folds import fold_of, mixed_sets
from util.runtime.cli import main
from util.runtime.errors import UserError
from util.runtime.log import log

PRETRAINED = "backbone: its pre-training on ImageNet may have seen objects of these classes"
NOT_PRETRAINED = "backbone: not pre-trained"

OBJECTS = {
    "background": "novel objects are background",
    "left out": "images with a novel object are left out",
    "trained": "no class is novel: all are trained on",
    "labeled": "novel objects are labeled, and the scores choose best.pth",
}
"""What becomes of novel objects -> how `leak_notes` says it."""

Leaks = dict[str, Any]
"""What was seen, in types of JSON.

Stage (of `STAGES`) -> {"unknown": the reason}, or what it used:

- `images`: their number; `test_images`: those that the test uses, too, None if it has other data;
- `objects`: what became of novel objects, a key of `OBJECTS`;
- `classes`: name of a tested class -> the `images` that hold it, its `pixels` in them, and the
  images `left_out`, which hold it but are not used. None if the labels do not have the class.

Beside the stages: `backbone`, a sentence, and `not_tested`: classes that a model of another data
set was trained on.
"""


@dataclass(frozen=True)
class Trained:
    """How a stage was trained: its config, and the number of its training images if recorded."""

    config: Config
    images: int | None = None


@dataclass(frozen=True)
class _Use:
    """The images of a `table` that a stage uses, and what becomes of novel objects."""

    table: Table
    images: set[str]
    objects: str


_Place = tuple[str, Path]
_Open = Callable[[DataSection, str], tuple[AnySource, Table]]


def find_leaks(
    tested: FoldList,
    data: DataSection,
    one: Trained | None,
    two: Trained | None,
    stages: Iterable[str] = (),
    build: bool = False,
) -> Leaks:
    """Count what the stages of a model have seen of the classes that a test asks for.

    Args:
        tested: the list of the test.
        data: the section of the config that it is from.
        one: how stage one was trained; None if unknown.
        two: the same of stage two.
        stages: those of `STAGES` to count, by default all.
        build: read the masks if their table is not stored; else the numbers are then unknown.
    """

    @cache
    def open_table(data: DataSection, subset: str) -> tuple[AnySource, Table]:
        source = open_source(data, subset)
        return source, load_table(source, data.list_dir, build)

    fold, trained = fold_of(data), two or one
    is_random = trained is not None and trained.config.Method.pretrained == "none"
    leaks: Leaks = {"backbone": NOT_PRETRAINED if is_random else PRETRAINED, "not_tested": []}
    if fold.trained_on:
        numbers = fold.base_table()
        leaks["not_tested"] = [fold.names[c - 1] for c in fold.base if numbers[c]]
    for stage in stages or STAGES:
        how = two if stage.endswith("two") else one
        try:
            if how is None:
                number = stage.rpartition(" ")[2]
                raise UserError(f"the checkpoint does not say how stage {number} was trained")
            leaks[stage] = _count(STAGES[stage](how, open_table), how.config.Data, tested, data)
        except (UserError, OSError) as error:
            leaks[stage] = {"unknown": str(error)}
    return leaks


def stage_one_leaks(cfg: Config) -> Leaks:
    """Count what stage one of a config sees of the novel classes of its fold."""
    how, stages = Trained(cfg), [stage for stage in STAGES if stage.endswith("one")]
    return find_leaks(_tested(cfg.Data), cfg.Data, how, None, stages)


def _tested(data: DataSection) -> FoldList:
    return list_of(load_table(open_source(data, "val"), data.list_dir), data, "val")[0]


def _count(use: _Use, trained: DataSection, tested: FoldList, data: DataSection) -> dict[str, Any]:
    """Return the entry of a stage, see `Leaks`."""
    names = {canonical_name(tested.name(c)): tested.name(c) for c in sorted(tested.by_class)}
    called = {c: names.get(canonical_name(n)) for c, n in enumerate(fold_of(trained).names, 1)}
    seen: Counter[str] = Counter()
    left_out, pixels = seen.copy(), seen.copy()
    for image, content in use.table.items():
        there = [(name, number) for c, number in content.items() if (name := called[c])]
        is_used = image in use.images
        (seen if is_used else left_out).update({name for name, _ in there})
        for name, number in there if is_used else ():
            pixels[name] += number
    labeled = {
        name: {"images": seen[name], "pixels": pixels[name], "left_out": left_out[name]}
        for name in names.values()
    }
    shared = set(_sets(trained).values()) & set(_sets(data).values())
    used, asked = _located(use.images, trained), _located(_images(tested), data)
    return {
        "images": len(use.images),
        "test_images": len(used & asked) if shared else None,
        "objects": use.objects,
        "classes": {n: labeled[n] if n in called.values() else None for n in names.values()},
    }


def _sets(data: DataSection) -> dict[str, _Place]:
    """Return kind and folder of each data set, by what the ids of its images begin with."""
    sets = {id_in_mix(each.name, ""): (each.kind, each.root) for each in mixed_sets(data.mix)}
    sets = sets or {"": (data.data_set, Path(data.data_root))}
    return {begin: (kind, root.resolve()) for begin, (kind, root) in sets.items()}


def _located(images: Iterable[str], data: DataSection) -> set[tuple[_Place, str]]:
    """Return images as their data set, and their id in it."""
    sets = _sets(data).items()
    return {(at, i.removeprefix(b)) for i in images for b, at in sets if i.startswith(b)}


def _images(listed: FoldList) -> set[str]:
    """Return queries and supports; in a list of BAM, a support need not be a query."""
    return set(listed.images).union(*listed.by_class.values())


def _stage_one(how: Trained, open_table: _Open) -> _Use:
    cfg = how.config
    source, table = open_table(cfg.Data, "train")
    images = list_base_images(table, cfg, "train", source)[0]
    _require_recorded(how, len(images))
    return _Use(table, set(images), _in_training(cfg.Data, cfg.Base.train_list == "fold"))


def _stage_two(how: Trained, open_table: _Open) -> _Use:
    data = how.config.Data
    source, table = open_table(data, "train")
    listed = list_on_disk(table, data, "train", source)[0]
    _require_recorded(how, len(listed.images) * data.same_query)
    return _Use(table, _images(listed), _in_training(data, of_list=True))


def _in_training(data: DataSection, of_list: bool) -> str:
    """Return what becomes of novel objects in training images, perhaps those of the fold's list."""
    is_dropped = of_list and data.novel_in_training == "drop"
    return _novel_objects(data, "left out" if is_dropped else "background")


def _novel_objects(data: DataSection, become: str) -> str:
    """Return what novel objects `become`, or that there are none."""
    return become if fold_of(data).novel else "trained"


def _validation_of_one(how: Trained, open_table: _Open) -> _Use:
    cfg = how.config
    source, table = open_table(cfg.Data, "val")
    images = list_base_images(table, cfg, "val", source)[0] if cfg.Base.evaluate else []
    images = images[: cfg.Base.val_images or None]
    return _Use(table, set(images), _novel_objects(cfg.Data, "background"))


def _validation_of_two(how: Trained, open_table: _Open) -> _Use:
    data, options = how.config.Data, how.config.Eval
    source, table = open_table(data, "val")
    listed = list_on_disk(table, data, "val", source)[0]
    sampler = EpisodeSampler(listed, data.shot, options.val_seed, draw_of(how.config, "val"))
    episodes = options.val_episodes if how.config.Train.evaluate else 0
    plans = map(sampler.plan, range(episodes))
    images = {i for plan in plans for i in (plan.query, *plan.supports)}
    return _Use(table, images, _novel_objects(data, "labeled"))


def _require_recorded(how: Trained, images: int) -> None:
    """Refuse a list that is not that of the training any more."""
    if how.images not in (None, images):
        place = Path(how.config.Data.list_dir, "train.json")
        raise UserError(f"{place}: gives {images} training samples now, the run had {how.images}")


STAGES: dict[str, Callable[[Trained, _Open], _Use]] = {
    "stage one": _stage_one,
    "stage two": _stage_two,
    "validation of stage one": _validation_of_one,
    "validation of stage two": _validation_of_two,
}
"""What may see novel classes -> how its images are found."""


def leak_table(leaks: Leaks) -> list[list[str]]:
    """Return heads and rows: what each stage that is known has seen of each class that it labels.

    A cell is such as `21 (90,123 px), left out 3`.
    """
    stages = _known_stages(leaks)
    labeled, _ = _labeled(leaks)
    rows = [[name, *(_cell(leaks[s]["classes"][name]) for s in stages)] for name in labeled]
    return [["class", *stages], *rows]


def _known_stages(leaks: Leaks) -> list[str]:
    return [stage for stage in STAGES if "classes" in leaks.get(stage, {})]


def _labeled(leaks: Leaks) -> tuple[list[str], list[str]]:
    """Return the tested classes that the labels of the training have, and the others."""
    of_stages = [leaks[stage]["classes"] for stage in _known_stages(leaks)]
    names = of_stages[0] if of_stages else ()
    labeled = [n for n in names if any(classes[n] for classes in of_stages)]
    return labeled, [n for n in names if n not in labeled]


def _cell(counts: dict[str, int] | None) -> str:
    if counts is None:
        return "unknown"
    pixels = f" ({counts['pixels']:,} px)" if counts["images"] else ""
    rest = f", left out {counts['left_out']:,}" if counts["left_out"] else ""
    return f"{counts['images']:,}{pixels}{rest}"


def leak_notes(leaks: Leaks) -> list[str]:
    """Return what the table does not say, a line each."""
    notes = []
    for stage, found in ((stage, leaks[stage]) for stage in STAGES if stage in leaks):
        if "unknown" in found:
            notes.append(f"{stage}: unknown: {found['unknown']}")
            continue
        tested = "" if found["test_images"] is None else f", {found['test_images']:,} of the test"
        notes.append(f"{stage}: {found['images']:,} images{tested}; {OBJECTS[found['objects']]}")
    if others := _labeled(leaks)[1]:
        notes.append(f"unknown, no labels in the data of the training: {', '.join(others)}")
    if leaks["not_tested"]:
        notes.append(f"not tested, the model was trained on it: {', '.join(leaks['not_tested'])}")
    return [*notes, leaks["backbone"]]


def format_leaks(leaks: Leaks) -> str:
    """Return table and notes as text."""
    rows = leak_table(leaks)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["images (pixels) of the novel classes that the run has seen:"]
    for row in rows if len(rows) > 1 else ():
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *leak_notes(leaks)])


def _main() -> None:
    cfg = config_argument(__doc__)
    if cfg.Data.trained_on:
        raise UserError(f"Data.trained_on {cfg.Data.trained_on}: name the config of the training")
    how = Trained(cfg)
    log.info(format_leaks(find_leaks(_tested(cfg.Data), cfg.Data, how, how, build=True)))


if __name__ == "__main__":
    main(_main)
