"""Lists equal the published ones; episodes and samples depend on their seeds only."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden import golden
from helpers.pictures import a_fold, changed, same
from mmseg.core.evaluation import get_classes
from torch.utils.data import DataLoader

from util.config import Config
from util.data.base_images import open_base_images
from util.data.dataset import collate, open_episodes
from util.data.episodes import Draw, EpisodeSampler
from util.data.image_io import read_label
from util.data.lists import FoldList, check_shots, fold_list, restrict_to_images
from util.data.prepare import prepare_coco
from util.data.source import SUBSETS, Source
from util.data.tables import load_table
from util.data.transform import BaseLearnerTransform, EvalTransform, TrainTransform
from util.folds import CLASSES, published_fold


def coco_table(tree: Path, tmp_path: Path, subset: str) -> dict[str, dict[int, int]]:
    prepare_coco(tree / "MSCOCO2014", tmp_path, copy=False, workers=1)
    return load_table(Source(tmp_path / "MSCOCO2014", "coco", subset), tmp_path / "lists")


# --- folds and lists -----------------------------------------------------------------------------


def test_class_names_are_those_of_mmseg() -> None:
    assert list(CLASSES["pascal"]) == get_classes("voc")[1:]
    assert list(CLASSES["coco"]) == get_classes("coco_stuff")[:80]


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
@pytest.mark.parametrize("every_fourth", [True, False])
def test_each_class_is_novel_in_exactly_one_fold(data_set: str, every_fourth: bool) -> None:
    folds = [published_fold(data_set, split, every_fourth) for split in range(4)]
    every = set(range(1, len(CLASSES[data_set]) + 1))
    novel = [fold.novel for fold in folds]
    assert set().union(*novel) == every and sum(map(len, novel)) == len(every)
    assert all(set(fold.base) == every - set(fold.novel) for fold in folds)


def test_folds_are_the_published_ones() -> None:
    assert published_fold("pascal", 2).novel == (11, 12, 13, 14, 15)
    assert published_fold("coco", 1).novel[:3] == (2, 6, 10)
    assert published_fold("coco", 1, use_split_coco=False).novel == tuple(range(21, 41))


def test_base_table_numbers_base_classes_in_ascending_order_and_keeps_255() -> None:
    table = published_fold("pascal", 1).base_table()
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert table[:21].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, *range(6, 16)]
    assert table[255] == 255 and not table[21:255].any()


@pytest.mark.parametrize("subset", SUBSETS)
def test_pascal_lists_equal_the_published_ones(tree: Path, subset: str, tmp_path: Path) -> None:
    expected = golden.published_lists("pascal")
    source = Source(tree / "VOCdevkit2012/VOC2012", "pascal", subset)
    table = load_table(source, tmp_path)
    assert load_table(source, tmp_path) == table  # read from the file
    for split in range(4):
        got = fold_list(table, published_fold("pascal", split), subset)
        want = expected[f"{subset}_{split}"]
        assert got.images == want["images"]
        assert {str(c): ids for c, ids in got.by_class.items()} == want["by_class"]


def test_coco_masks_give_the_published_lists_for_every_image(tree: Path, tmp_path: Path) -> None:
    expected = golden.published_lists("coco")
    table = coco_table(tree, tmp_path, "val")
    for split in ("1", "2", "3"):
        fold = fold_list(table, published_fold("coco", int(split)), "val")
        for name, classes in expected["val"].items():
            got = [c for c, ids in fold.by_class.items() if Path(name).stem in ids]
            assert got == sorted(classes[split]), name
    table = coco_table(tree, tmp_path, "train")
    listed = fold_list(table, published_fold("coco", 0), "train").images
    for name, is_listed in expected["train_fold0"].items():
        assert (Path(name).stem in listed) == is_listed, name


def test_restricted_list_leaves_out_classes_with_too_few_images_and_names_them() -> None:
    fold = a_fold(c1=6, c2=2, c3=6, c4=0)
    kept, report = restrict_to_images(
        fold, [i for i in fold.images if i not in ("c3_0", "c1_5")], 2
    )
    assert list(kept.by_class) == [1, 3] and "c3_0" not in kept.images
    assert kept.classes_of["c1_0"] == (1,)  # class 2 is in its mask, but has too few images
    assert kept.classes_of["c2_0"] == (3,)  # still a query: class 3 is in its mask
    assert [line.split(":")[0] for line in report] == [
        "left out class 2 (bicycle)", "left out class 4 (boat)",
    ]  # fmt: skip
    check_shots(kept, 2)


def test_list_is_restricted_until_nothing_changes() -> None:
    # Without class 2, image x is no query; without x, class 1 has too few images.
    by_class = {1: ["x", "y"], 2: ["x"], 3: ["p", "q"]}
    fold = FoldList(["x", "y", "p", "q"], by_class, {"x": (2,), "y": (1,)} | {"p": (3,), "q": (3,)},
                    CLASSES["pascal"])  # fmt: skip
    kept, _ = restrict_to_images(fold, fold.images, 1)
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
    assert len(seen) == 19  # every image of every class is a support


def test_episode_depends_on_seed_and_index_only() -> None:
    one, other = (EpisodeSampler(a_fold(c1=9, c2=9, c3=9, c4=3), 1, 3) for _ in range(2))
    late = [other.plan(i) for i in reversed(range(100))]
    assert [one.plan(i) for i in range(100)] == late[::-1]
    fresh = EpisodeSampler(one.fold, 1, 4)
    assert [fresh.plan(i) for i in range(100)] != late[::-1]


@pytest.mark.parametrize(("balance", "share"), [(0.5, 0.75), (1.0, 0.5)])
def test_class_balance_draws_classes_in_proportion_to_their_share(
    balance: float, share: float
) -> None:
    """One class has nine times the images of the other: 3 to 1 at balance 0.5, 1 to 1 at 1."""
    sampler = EpisodeSampler(a_fold(c1=81, c2=9), 1, 0, Draw(balance=balance))
    plans = [sampler.plan(i) for i in range(4000)]
    assert sum(plan.class_id == 1 for plan in plans) / 4000 == pytest.approx(share, abs=0.03)
    assert {plan.query for plan in plans} == set(sampler.fold.images)
    assert all(plan.class_id in sampler.fold.classes_of[plan.query] for plan in plans)
    assert all(plan.query not in plan.supports for plan in plans)


def test_class_balance_changes_training_only(pictures: Config) -> None:
    cfg = changed(pictures, class_balance=1.0)
    for subset, equal in (("train", False), ("val", True)):
        (one, _), (other, _) = (open_episodes(c, subset, 3) for c in (pictures, cfg))
        plans = ([e.sampler.plan(i) for i in range(20)] for e in (one, other))
        assert (next(plans) == next(plans)) == equal


def test_samples_do_not_depend_on_the_number_of_workers(pictures: Config) -> None:
    episodes, report = open_episodes(pictures, "train", 3)
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
def test_batch_has_the_shapes_types_and_labels_of_its_fields(pictures: Config, subset: str) -> None:
    episodes, _ = open_episodes(changed(pictures, shot=2), subset, 0)
    batch = collate([episodes[i] for i in range(4)]).to("cpu")
    assert batch.query.shape == (4, 3, 65, 65) and batch.query.dtype == torch.float32
    assert batch.support.shape == (4, 2, 3, 65, 65) and batch.support_mask.shape == (4, 2, 65, 65)
    for mask in (batch.query_mask, batch.support_mask):
        assert mask.dtype == torch.int64 and set(mask.unique().tolist()) == {0, 1, 255}
    classes = published_fold("pascal", 0).classes(subset)
    assert [classes[i] for i in batch.class_index] == [plan.class_id for plan in batch.plans]
    for row, plan in enumerate(batch.plans):
        label = torch.from_numpy(read_label(episodes.source.label_path(plan.query)))
        assert torch.equal(episodes.load_pair(plan.query, None)[2], label)
        if subset == "train":  # the episode's class is the base learner's class index + 1
            target = batch.query_mask[row] == 1
            assert torch.equal(target, batch.query_base_mask[row] == batch.class_index[row] + 1)


def test_base_learner_samples_take_every_image_once_per_pass(pictures: Config) -> None:
    samples, _ = open_base_images(pictures, "train", BaseLearnerTransform((65, 65)), 3)
    assert sorted(samples._passes(i) for i in range(len(samples))) == list(range(len(samples)))
    image, label = samples[4]
    assert image.shape == (3, 65, 65) and label.dtype == torch.int64
    assert set(label.unique().tolist()) <= {*range(16), 255}
    assert torch.equal(samples[4][0], image)
    assert not torch.equal(samples[4 + len(samples)][0], image)
    ordered, _ = open_base_images(pictures, "val", EvalTransform((65, 65)), None)
    source_image = ordered.source.load(ordered.images[2])[0]
    wanted = EvalTransform((65, 65))(
        source_image, np.zeros(source_image.shape[:2], np.uint8), None
    )[0]
    assert torch.equal(ordered[2][0], wanted)


# --- transforms ----------------------------------------------------------------------------------


def test_eval_transform_normalizes_images_in_0_to_1() -> None:
    image = np.full((20, 30, 3), (255, 0, 51), np.uint8)
    out, _ = EvalTransform((9, 9), (0.5, 0.5, 0.1), (0.25, 0.5, 0.2))(image, image[..., 0], None)
    assert torch.allclose(out.mean((1, 2)), torch.tensor([2.0, -1.0, 0.5]), atol=1e-6)


def test_augmentation_moves_image_and_label_together() -> None:
    label = np.zeros((80, 100), np.uint8)
    cv2.circle(label, (60, 30), 18, 7, -1)
    image = np.where(label[..., None] == 7, 255, 0).astype(np.uint8).repeat(3, 2)
    for transform in (TrainTransform((65, 65)), BaseLearnerTransform((65, 65))):
        for seed in range(30):
            out, mask = transform(image, label, np.random.default_rng(seed))
            assert set(mask.unique().tolist()) <= {0, 7, 255}
            inside = (out[0] > 0) == (mask == 7)
            assert inside[mask != 255].float().mean() > 0.97


def test_padding_of_the_crop_is_mean_color_and_label_255() -> None:
    image, label = np.full((40, 40, 3), 255, np.uint8), np.ones((40, 40), np.uint8)
    out, mask = BaseLearnerTransform((65, 65), scale=(1, 1), rotate=0)(
        image, label, np.random.default_rng(0)
    )
    assert (mask == 255).sum() == 65 * 65 - 40 * 40
    clear = cv2.dilate((mask != 255).numpy().astype(np.uint8), np.ones((5, 5))) == 0  # blur
    assert out[:, torch.from_numpy(clear)].abs().max() < 1e-5
