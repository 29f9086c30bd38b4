"""Lists, episodes and samples: equal to the published ones, and a function of their seeds."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmseg.core.evaluation import get_classes
from PIL import Image
from torch.utils.data import DataLoader

from util.data.base import open_base
from util.data.dataset import EpisodeBatch, EpisodeDataset, binary_mask, collate, open_episodes
from util.data.episodes import EpisodeSampler
from util.data.folds import CLASSES, base_classes, base_table, novel_classes
from util.data.lists import FoldList, available, check_shots, fold_list, load_table
from util.data.make_demo import make_demo, voc_palette
from util.data.prepare import main as prepare
from util.data.source import SUBSETS, Source, read_image, read_label
from util.data.transform import BaseTransform, EvalTransform, TrainTransform


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A config of a small demo data set."""
    out = tmp_path_factory.mktemp("demo")
    make_demo(out, images=200, seed=0)
    root = out / "VOCdevkit2012" / "VOC2012"
    return config(data_root=root, list_dir=out / "lists")


def config(**keys: object) -> SimpleNamespace:
    data = {"data_set": "pascal", "split": 0, "use_split_coco": True, "shot": 1, "size": 65}
    data |= {"scale": (0.9, 1.1), "rotate": 10, "augment": True, "missing": "error"}
    return SimpleNamespace(Data=SimpleNamespace(**(data | keys)))


def changed(cfg: SimpleNamespace, **keys: object) -> SimpleNamespace:
    return config(**(vars(cfg.Data) | keys))


def coco_table(tree: Path, tmp_path: Path, subset: str) -> dict[str, dict[int, int]]:
    prepare(["coco", "--coco", str(tree / "MSCOCO2014"), "--out", str(tmp_path), "--workers", "1"])
    return load_table(Source(tmp_path / "MSCOCO2014", "coco", subset), tmp_path / "lists")


# --- folds and lists -----------------------------------------------------------------------------


def test_class_names_are_mmsegs() -> None:
    assert list(CLASSES["pascal"]) == get_classes("voc")[1:]
    assert list(CLASSES["coco"]) == get_classes("coco_stuff")[:80]


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
@pytest.mark.parametrize("every_fourth", [True, False])
def test_each_class_is_novel_in_exactly_one_fold(data_set: str, every_fourth: bool) -> None:
    folds = [novel_classes(data_set, split, every_fourth) for split in range(4)]
    every = set(range(1, len(CLASSES[data_set]) + 1))
    assert set().union(*folds) == every and sum(map(len, folds)) == len(every)
    for split, novel in enumerate(folds):
        assert set(base_classes(data_set, split, every_fourth)) == every - set(novel)


def test_folds_are_the_published_ones() -> None:
    assert novel_classes("pascal", 2) == (11, 12, 13, 14, 15)
    assert novel_classes("coco", 1)[:3] == (2, 6, 10)
    assert novel_classes("coco", 1, use_split_coco=False) == tuple(range(21, 41))


def test_base_table_numbers_base_classes_in_order_and_keeps_255() -> None:
    table = base_table("pascal", 1)
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert table[:21].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, *range(6, 16)]
    assert table[255] == 255 and not table[21:255].any()


@pytest.mark.parametrize("subset", SUBSETS)
def test_pascal_lists_equal_the_published_ones(
    shared: Path, tree: Path, subset: str, tmp_path: Path
) -> None:
    expected = json.loads(gzip.decompress((shared / "voc2012/expected_lists.json.gz").read_bytes()))
    source = Source(tree / "VOCdevkit2012/VOC2012", "pascal", subset)
    table = load_table(source, tmp_path)
    assert load_table(source, tmp_path) == table  # from the file now
    for split in range(4):
        got, want = fold_list(table, "pascal", split, subset), expected[f"{subset}_{split}"]
        assert got.images == want["images"]
        assert {str(c): ids for c, ids in got.by_class.items()} == want["by_class"]


def test_coco_masks_give_the_published_lists_on_every_image(
    shared: Path, tree: Path, tmp_path: Path
) -> None:
    expected = json.loads((shared / "coco2014/expected_lists.json").read_text())
    table = coco_table(tree, tmp_path, "val")
    for split in ("1", "2", "3"):
        fold = fold_list(table, "coco", int(split), "val")
        for name, classes in expected["val"].items():
            got = [c for c, ids in fold.by_class.items() if Path(name).stem in ids]
            assert got == sorted(classes[split]), name
    listed = fold_list(coco_table(tree, tmp_path, "train"), "coco", 0, "train").images
    for name, is_listed in expected["train_fold0"].items():
        assert (Path(name).stem in listed) == is_listed, name


def a_fold(**sizes: int) -> FoldList:
    """A fold whose class 1, 2, ... has so many images, each with the next class in it, too."""
    by_class = {int(c[1:]): [f"{c}_{i}" for i in range(n)] for c, n in sizes.items()}
    images = [i for ids in by_class.values() for i in ids]
    classes_of = {
        i: tuple(n for n in (c, c + 1) if n in by_class) for c, ids in by_class.items() for i in ids
    }
    return FoldList(images, by_class, classes_of, "pascal")


def test_available_goes_down_to_what_can_serve_and_says_what_it_left_out() -> None:
    fold = a_fold(c1=6, c2=2, c3=6, c4=0)
    kept, report = available(fold, lambda i: i not in ("c3_0", "c1_5"), 2)
    assert list(kept.by_class) == [1, 3] and "c3_0" not in kept.images
    assert kept.classes_of["c1_0"] == (1,)  # class 2 is in its mask, but has too few images
    assert kept.classes_of["c2_0"] == (3,)  # a query yet: class 3 is in its mask
    assert [line.split(":")[0] for line in report] == [
        "left out 2 of 14 listed images", "left out class 2 (bicycle)", "left out class 4 (boat)",
    ]  # fmt: skip
    check_shots(kept, 2)


def test_available_repeats_until_nothing_changes() -> None:
    # Without class 2, image x is no query; without x, class 1 cannot serve either.
    by_class = {1: ["x", "y"], 2: ["x"], 3: ["p", "q"]}
    fold = FoldList(["x", "y", "p", "q"], by_class, {"x": (2,), "y": (1,)} | {"p": (3,), "q": (3,)},
                    "pascal")  # fmt: skip
    kept, _ = available(fold, lambda _: True, 1)
    assert kept.images == ["p", "q"] and kept.by_class == {3: ["p", "q"]}


# --- episodes and samples ------------------------------------------------------------------------


def test_every_image_is_a_query_once_per_pass() -> None:
    fold = a_fold(c1=5, c2=7, c3=4)
    sampler = EpisodeSampler(fold, 2, 7)
    first, second = ([sampler.plan(p * 16 + i).query for i in range(16)] for p in (0, 1))
    assert sorted(first) == sorted(second) == sorted(fold.images) and first != second


def test_supports_are_different_images_of_the_class_and_never_the_query() -> None:
    fold = a_fold(c1=4, c2=5, c3=6, c4=4)
    sampler, seen = EpisodeSampler(fold, 3, 0), set()
    for plan in map(sampler.plan, range(2000)):
        assert len({*plan.supports, plan.query}) == 4
        assert set(plan.supports) <= set(fold.by_class[plan.class_id])
        assert plan.class_id in fold.classes_of[plan.query]
        seen.update((plan.class_id, i) for i in plan.supports)
    assert len(seen) == 19  # every image of every class serves


def test_a_plan_depends_on_seed_and_index_alone() -> None:
    one, other = (EpisodeSampler(a_fold(c1=9, c2=9, c3=9, c4=3), 1, 3) for _ in range(2))
    late = [other.plan(i) for i in reversed(range(100))]
    assert [one.plan(i) for i in range(100)] == late[::-1]
    fresh = EpisodeSampler(one.fold, 1, 4)
    assert [fresh.plan(i) for i in range(100)] != late[::-1]


def same(a: EpisodeBatch, b: EpisodeBatch) -> bool:
    tensors = ("query", "query_mask", "query_base_mask", "support", "support_mask", "class_id")
    return a.plans == b.plans and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)


def test_samples_do_not_depend_on_the_number_of_workers(demo: SimpleNamespace) -> None:
    episodes, report = open_episodes(demo, "train", 3)
    assert report == []
    one, many = (
        list(
            DataLoader(episodes, 3, sampler=range(50, 62), num_workers=workers, collate_fn=collate)
        )
        for workers in (0, 2)
    )
    assert len(one) == len(many) == 4
    assert all(same(a, b) for a, b in zip(one, many, strict=True))
    assert same(one[0], collate([episodes[i] for i in (50, 51, 52)]))


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_batch_holds_what_its_fields_say(demo: SimpleNamespace, subset: str) -> None:
    episodes, _ = open_episodes(changed(demo, shot=2), subset, 0)
    batch = collate([episodes[i] for i in range(4)]).to("cpu")
    assert batch.query.shape == (4, 3, 65, 65) and batch.query.dtype == torch.float32
    assert batch.support.shape == (4, 2, 3, 65, 65) and batch.support_mask.shape == (4, 2, 65, 65)
    for mask in (batch.query_mask, batch.support_mask):
        assert mask.dtype == torch.int64 and set(mask.unique().tolist()) == {0, 1, 255}
    classes = (base_classes if subset == "train" else novel_classes)("pascal", 0)
    assert [classes[i] for i in batch.class_index] == batch.class_id.tolist()
    for row, plan in enumerate(batch.plans):
        label = torch.from_numpy(read_label(episodes.source.label_path(plan.query)))
        assert torch.equal(batch.labels[row], binary_mask(label, plan.class_id))
        assert torch.equal(batch.base_labels[row], episodes.base_mask(label))
        if subset == "train":  # the episode's class is the base learner's class index + 1
            target = batch.query_mask[row] == 1
            assert torch.equal(target, batch.query_base_mask[row] == batch.class_index[row] + 1)


def test_base_samples_pass_over_every_image(demo: SimpleNamespace) -> None:
    samples, _ = open_base(demo, "train", BaseTransform(65), 3)
    assert sorted(samples._passes(i) for i in range(len(samples))) == list(range(len(samples)))
    image, label = samples[4]
    assert image.shape == (3, 65, 65) and label.dtype == torch.int64
    assert set(label.unique().tolist()) <= {*range(16), 255}
    assert torch.equal(samples[4][0], image)
    assert not torch.equal(samples[4 + len(samples)][0], image)
    ordered, _ = open_base(demo, "val", EvalTransform(65), None)
    source_image = ordered.source.load(ordered.images[2])[0]
    wanted = EvalTransform(65)(source_image, np.zeros(source_image.shape[:2], np.uint8), None)[0]
    assert torch.equal(ordered[2][0], wanted)


# --- transforms ----------------------------------------------------------------------------------


def test_eval_transform_normalises_in_units_of_0_to_1() -> None:
    image = np.full((20, 30, 3), (255, 0, 51), np.uint8)
    out, _ = EvalTransform(9, (0.5, 0.5, 0.1), (0.25, 0.5, 0.2))(image, image[..., 0], None)
    assert torch.allclose(out.mean((1, 2)), torch.tensor([2.0, -1.0, 0.5]), atol=1e-6)


def test_augmentation_moves_image_and_label_together() -> None:
    label = np.zeros((80, 100), np.uint8)
    cv2.circle(label, (60, 30), 18, 7, -1)
    image = np.where(label[..., None] == 7, 255, 0).astype(np.uint8).repeat(3, 2)
    for transform in (TrainTransform(65), BaseTransform(65)):
        for seed in range(30):
            out, mask = transform(image, label, np.random.default_rng(seed))
            assert set(mask.unique().tolist()) <= {0, 7, 255}
            inside = (out[0] > 0) == (mask == 7)
            assert inside[mask != 255].float().mean() > 0.97


def test_what_rotation_and_cropping_lay_bare_is_mean_and_255() -> None:
    image, label = np.full((40, 40, 3), 255, np.uint8), np.ones((40, 40), np.uint8)
    out, mask = BaseTransform(65, scale=(1, 1), rotate=0)(image, label, np.random.default_rng(0))
    assert (mask == 255).sum() == 65 * 65 - 40 * 40
    clear = cv2.dilate((mask != 255).numpy().astype(np.uint8), np.ones((5, 5))) == 0  # blur
    assert out[:, torch.from_numpy(clear)].abs().max() < 1e-5


# --- reading -------------------------------------------------------------------------------------


def test_palette_and_grayscale_masks_give_class_ids(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    gray = Image.fromarray(label)
    gray.save(tmp_path / "gray.png")
    gray.putpalette(voc_palette())
    gray.save(tmp_path / "palette.png")
    assert np.array_equal(read_label(tmp_path / "gray.png"), label)
    assert np.array_equal(read_label(tmp_path / "palette.png"), label)
    assert not np.array_equal(cv2.imread(str(tmp_path / "palette.png"), 0), label)


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (250, 3, 5)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [250, 3, 5]


def refused(words: list[str], call: object, *arguments: object) -> None:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "LA", "1"])
def test_masks_without_class_ids_are_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new(mode, (5, 5)).save(path)
    refused([str(path), mode, "8-bit palette or grayscale PNG"], read_label, path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for read in (read_image, read_label):
        refused([str(broken), "cannot be read"], read, broken)
        refused(["gone.png", "no such"], read, tmp_path / "gone.png")


def test_an_image_and_a_mask_of_different_size_are_refused(
    demo: SimpleNamespace, tmp_path: Path
) -> None:
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (9, 5)).save(tmp_path / "JPEGImages/a.jpg")
    Image.new("L", (5, 9)).save(tmp_path / "SegmentationClassAug/a.png")
    source = Source(tmp_path, "pascal", "val")
    refused(["a.png", "5x9", "9x5"], source.load, "a")


def test_wrong_data_is_refused_in_one_line(demo: SimpleNamespace, tmp_path: Path) -> None:
    root, subset = demo.Data.data_root, "train"
    refused(["nowhere", "Data.data_root"], Source, tmp_path / "nowhere", "pascal", subset)
    refused(["JPEGImages", "Data.data_root"], Source, tmp_path, "pascal", subset)
    refused(["'voc'", "pascal"], Source, root, "voc", subset)
    refused(["Data.split", "4"], novel_classes, "pascal", 4)
    (tmp_path / "val2014").mkdir()
    refused(["masks", "util.data.prepare coco"], Source, tmp_path, "coco", "val")
    (tmp_path / "masks/val2014").mkdir(parents=True)
    refused(["no PNG", "util.data.prepare coco"], Source(tmp_path, "coco", "val").image_ids)


def test_a_table_of_other_images_is_refused(demo: SimpleNamespace, tmp_path: Path) -> None:
    source = Source(demo.Data.data_root, "pascal", "val")
    load_table(source, tmp_path)
    path = tmp_path / "val.json"
    whole = path.read_text()
    for text in (whole.replace("_val_00003", "_val_99999"), whole[:-40], "[]", "{}"):
        path.write_text(text)
        refused([str(path), "delete it"], load_table, source, tmp_path)


def test_a_list_folder_that_cannot_be_written_is_named(
    demo: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    source = Source(demo.Data.data_root, "pascal", "val")
    refused(["cannot be written", "Data.list_dir"], load_table, source, tmp_path / "file/lists")


def test_a_class_the_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "masks/val2014").mkdir(parents=True)
    Image.new("L", (5, 5), 90).save(tmp_path / "masks/val2014/a.png")
    source = Source(tmp_path, "coco", "val")
    refused(["a.png", "class 90", "80"], load_table, source, tmp_path / "lists")
    assert not (tmp_path / "lists/val.json").exists()


def test_missing_images_are_an_error_or_skipped_as_asked(
    demo: SimpleNamespace, tmp_path: Path
) -> None:
    root = tmp_path / "VOCdevkit2012" / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    for part in ("SegmentationClassAug", "ImageSets"):
        (root / part).symlink_to(demo.Data.data_root / part)
    sbd = "sbd_train_noval.txt"
    (root.parent / sbd).symlink_to(demo.Data.data_root.parent / sbd)
    there = sorted((demo.Data.data_root / "JPEGImages").iterdir())
    for path in there[::2]:
        (root / "JPEGImages" / path.name).symlink_to(path)
    error = changed(demo, data_root=root)
    skip = changed(error, missing="skip")
    for open_them in (open_episodes, lambda *a: open_base(*a[:2], EvalTransform(65), a[2])):
        refused([".jpg", "listed are absent", "Data.missing=skip"], open_them, error, "train", 0)
        kept, report = open_them(skip, "train", 0)
        assert "not on disk" in report[0]
    assert isinstance(kept[0], tuple) and len(kept) < 100
    episodes, _ = open_episodes(skip, "train", 0)
    assert isinstance(episodes, EpisodeDataset) and len(collate([episodes[0]]).plans) == 1


def test_too_few_images_for_the_shots_are_refused(demo: SimpleNamespace) -> None:
    refused(["class 1", "has 2 images", "3-shot needs 4"], check_shots, a_fold(c1=2), 3)
    refused(["Data.shot"], open_episodes, changed(demo, shot=500), "train", 0)
    refused(["Data.shot"], open_episodes, changed(demo, shot=500, missing="skip"), "train", 0)
