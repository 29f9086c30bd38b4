"""Which images, in which order, cut and resized how: the published protocol and its options."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.pictures import a_fold, changed, refused

from model.constants import IGNORE
from util.config import Config, config_from, load_config, to_dict
from util.data.base_images import open_base_images
from util.data.check import check
from util.data.dataset import open_episodes
from util.data.episodes import Draw, EpisodeSampler
from util.data.image_io import read_label
from util.data.lists import list_name, list_of
from util.data.mixed import open_source
from util.data.prepare.base_annotation import prepare_base_annotation
from util.data.tables import load_table
from util.data.transform import BaseLearnerTransform, EvalTransform, KeepTransform
from util.folds import fold_of
from util.runtime.log import configure
from util.train import base_learner

SIZE = (65, 65)


def with_base(cfg: Config, **keys: object) -> Config:
    return config_from(to_dict(cfg) | {"Base": to_dict(cfg)["Base"] | keys}, "a test")


# --- the base learner's images --------------------------------------------------------------------


@pytest.mark.parametrize("subset", ["train", "val"])
def test_base_learner_gets_every_image_with_novel_objects_as_background(
    pictures: Config, subset: str
) -> None:
    samples, _ = open_base_images(pictures, subset, EvalTransform(SIZE), None)
    source, fold = open_source(pictures.Data, subset), fold_of(pictures.Data)
    assert samples.images == source.image_ids()
    only_novel = 0
    for index, name in enumerate(samples.images[:40]):
        label = read_label(source.label_path(name))
        small = cv2.resize(label, SIZE, interpolation=cv2.INTER_NEAREST)
        wanted = np.where(np.isin(small, fold.novel), 0, fold.base_table()[small])
        assert np.array_equal(samples[index][1].numpy(), wanted)
        only_novel += np.isin(label, fold.novel).any() and not np.isin(label, fold.base).any()
    assert only_novel > 0


def test_base_learner_can_be_limited_to_the_list_of_the_fold(pictures: Config) -> None:
    cfg = with_base(pictures, train_list="fold")
    samples, _ = open_base_images(cfg, "train", EvalTransform(SIZE), None)
    table = load_table(open_source(cfg.Data, "train"), cfg.Data.list_dir)
    assert samples.images == list_of(table, cfg.Data, "train")[0].images
    assert 0 < len(samples.images) < len(table)


def test_images_with_novel_objects_are_dropped_or_their_objects_are_background(
    pictures: Config,
) -> None:
    fold = fold_of(pictures.Data)
    dropped, _ = open_episodes(pictures, "train", 1)
    assert pictures.Data.novel_in_training == "drop"
    keeping = changed(pictures, novel_in_training="background", augment=False)
    kept, _ = open_episodes(keeping, "train", 1)
    table = load_table(open_source(pictures.Data, "train"), pictures.Data.list_dir)
    with_novel = [i for i in kept.sampler.fold.images if table[i].keys() & set(fold.novel)]
    assert with_novel and not set(with_novel) & set(dropped.sampler.fold.images)
    assert set(kept.sampler.fold.images) == set(dropped.sampler.fold.images) | set(with_novel)
    assert all(table[i].keys() & set(fold.base) for i in with_novel)
    index = next(i for i in range(500) if kept.sampler.plan(i).query in with_novel)
    episode = kept[index]
    label, novel = kept.load_pair(episode.plan.query, None)[1], list(fold.novel)
    is_novel = torch.isin(label, torch.tensor(novel, dtype=torch.uint8))
    assert is_novel.any() and not episode.query_mask[is_novel].any()
    assert not episode.query_base_mask[is_novel].any()
    assert list_name(keeping.Data, "train").endswith("_novel")
    assert list_name(keeping.Data, "val") == list_name(pictures.Data, "val")
    val = [open_episodes(cfg, "val", 1)[0].sampler.fold for cfg in (pictures, keeping)]
    assert val[0] == val[1]


# --- the order of the queries ---------------------------------------------------------------------


def test_queries_follow_the_list_whatever_the_seed() -> None:
    fold = a_fold(c1=6, c3=5)
    plans = {}
    for seed in (1, 2):
        sampler = EpisodeSampler(fold, 1, seed, Draw("list"))
        plans[seed] = [sampler.plan(i) for i in range(25)]
        wanted = (fold.images * 3)[:25]
        assert [plan.query for plan in plans[seed]] == wanted
    assert [p.supports for p in plans[1]] != [p.supports for p in plans[2]]
    assert plans[1][0].supports != plans[1][11].supports or plans[1][1] != plans[1][12]


@pytest.mark.parametrize(("order", "is_sorted"), [("list", True), ("permuted", False)])
def test_order_acts_on_validation_and_test_only(
    pictures: Config, order: str, is_sorted: bool
) -> None:
    cfg = config_from(to_dict(pictures) | {"Eval": {"order": order}}, "a test")
    val, train = (open_episodes(cfg, subset, 3)[0].sampler for subset in ("val", "train"))
    count = len(val.fold.images)
    queries = [val.plan(i).query for i in range(count)]
    assert (queries == val.fold.images) == is_sorted and sorted(queries) == sorted(val.fold.images)
    assert [train.plan(i).query for i in range(20)] != train.fold.images[:20]


@pytest.mark.parametrize("name", ["pascal/pascal_split2_resnet50", "coco/coco_split1_vgg16"])
def test_published_configs_take_the_order_of_the_list(name: str) -> None:
    assert load_config(ROOT / f"config/{name}.yaml").Eval.order == "list"


# --- crop and resize ------------------------------------------------------------------------------


def test_crop_is_drawn_again_until_it_holds_most_of_label_1() -> None:
    image, label = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8)
    label[40:60, 40:60] = 1
    transform = BaseLearnerTransform((33, 33), scale=(1, 1), rotate=0)
    crops = [transform(image, label, np.random.default_rng(seed))[1] for seed in range(60)]
    held = [(cut == 1).sum().item() / 400 >= 0.85 for cut in crops]
    # One crop in 18 holds so much: 32 draws find one five times in six.
    assert 0.65 < np.mean(held) < 1  # and the last draw is taken if none does


def test_crop_without_label_1_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.full((100, 100), 2, np.uint8)
    transform = BaseLearnerTransform((33, 33), scale=(1, 1), rotate=0)
    monkeypatch.setattr(BaseLearnerTransform, "REDRAWS", 0)
    once = transform(np.zeros((100, 100, 3), np.uint8), label, np.random.default_rng(5))
    monkeypatch.undo()
    again = transform(np.zeros((100, 100, 3), np.uint8), label, np.random.default_rng(5))
    assert torch.equal(once[1], again[1]) and torch.equal(once[0], again[0])


@pytest.mark.parametrize(
    ("shape", "inside"), [((60, 120), (32, 64)), ((120, 60), (64, 32)), ((50, 50), (64, 64))]
)
def test_keep_transform_pads_an_image_of_unchanged_proportions(
    shape: tuple[int, int], inside: tuple[int, int]
) -> None:
    image = np.full((*shape, 3), 255, np.uint8)
    label = np.full(shape, 3, np.uint8)
    transform = KeepTransform(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tensor, target = transform.deterministic(image, label)
    height, width = inside
    assert (target[:height, :width] == 3).all() and (target == 3).sum() == height * width
    assert (target[height:] == IGNORE).all() and (target[:, width:] == IGNORE).all()
    assert (tensor[:, :height, :width] == 1).all()
    assert (tensor[:, height:] == -1).all() and (tensor[:, :, width:] == -1).all()  # black


def test_scores_of_a_padded_image_are_resized_to_its_longer_side_and_cut() -> None:
    across = torch.arange(65.0).expand(1, 1, 65, 65)  # its values are the columns
    out = KeepTransform(SIZE).to_image(across, (40, 80))
    assert out.shape == (1, 40, 80)
    wanted = torch.arange(80.0) * 64 / 79
    torch.testing.assert_close(out[0], wanted.expand(40, 80), atol=1e-4, rtol=0)
    down = KeepTransform(SIZE).to_image(across.transpose(2, 3), (40, 80))
    torch.testing.assert_close(down[0, :, 0], torch.arange(40.0) * 64 / 79, atol=1e-4, rtol=0)


def test_frame_of_a_padded_image_shows_what_the_input_shows() -> None:
    image = np.full((40, 80, 3), 7, np.uint8)
    framed = KeepTransform(SIZE).frame(image)
    assert framed.shape == (80, 80, 3) and (framed[:40] == 7).all() and not framed[40:].any()
    assert EvalTransform(SIZE).frame(image) is image


def test_validation_of_the_base_learner_keeps_proportions(pictures: Config) -> None:
    kinds = [type(base_learner.transform(pictures, train=train)) for train in (True, False)]
    assert kinds == [BaseLearnerTransform, KeepTransform]
    stretched = with_base(pictures, val_resize="stretch", augment=False)
    kinds = [type(base_learner.transform(stretched, train=train)) for train in (True, False)]
    assert kinds == [EvalTransform, EvalTransform]


# --- lists and labels of BAM ----------------------------------------------------------------------


@pytest.fixture
def theirs(pictures: Config, tmp_path: Path) -> Callable:
    """Write lists as BAM writes them; return the config that finds them, and the list they hold."""

    def write(subset: str = "train", reverse: bool = True, **keys: object) -> tuple:
        cfg = changed(pictures, list_dir=str(tmp_path / "pascal"), **keys)
        table = load_table(open_source(cfg.Data, subset), cfg.Data.list_dir)
        listed, _ = list_of(table, cfg.Data, subset)

        def pair(name: str) -> tuple[str, str]:
            root = "../data/VOCdevkit2012/VOC2012"
            return f"{root}/JPEGImages/{name}.jpg", f"{root}/SegmentationClassAug/{name}.png"

        images = listed.images[::-1] if reverse else listed.images
        folder = tmp_path / "pascal/fss_list" / subset
        folder.mkdir(parents=True)
        lines = "".join(" ".join(pair(name)) + "\n" for name in images)
        (folder / "data_list_0.txt").write_text(lines)
        by_class = {c: [pair(name) for name in ids] for c, ids in listed.by_class.items()}
        (folder / "sub_class_file_list_0.txt").write_text(str(by_class))
        return cfg, table, listed, folder

    return write


def test_lists_of_bam_are_used_as_they_lie_and_compared(theirs: Callable) -> None:
    cfg, table, listed, folder = theirs()
    found, report = list_of(table, cfg.Data, "train")
    assert found.images == listed.images[::-1] and found.by_class == listed.by_class
    assert found.classes_of == listed.classes_of
    assert not any("fss_list" in line for line in report)  # another order is no difference
    episodes, _ = open_episodes(cfg, "train", 1)
    assert episodes.sampler.fold.images == found.images
    path = folder / "data_list_0.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[3:]))
    shorter, report = list_of(table, cfg.Data, "train")
    assert shorter.images == found.images[3:]
    assert f"{path}: 0 images that the masks do not give, 3 less" in report
    assert report[0] in open_episodes(cfg, "train", 1)[1]
    assert set(report) <= set(check(cfg.Data, "train").mistakes)


def test_equal_lists_of_bam_are_said_to_be_equal(
    theirs: Callable, capsys: pytest.CaptureFixture
) -> None:
    configure()
    cfg, table, listed, folder = theirs(reverse=False)
    assert list_of(table, cfg.Data, "train")[0] == listed
    said = "used unchanged: in the same order, the images that the masks give"
    assert f"{folder}/data_list_0.txt: {said}" in capsys.readouterr().out


def test_lists_of_bam_that_do_not_fit_are_refused(theirs: Callable) -> None:
    cfg, table, _, folder = theirs()
    for key, value in (("novel_in_training", "background"), ("min_pixels", 99)):
        refused([f"Data.{key}"], list_of, table, changed(cfg, **{key: value}).Data, "train")
    without = {i: {1: 5000} for i in table}
    refused(["no class of this fold"], list_of, {**table, **without}, cfg.Data, "train")
    supports = folder / "sub_class_file_list_0.txt"
    text = supports.read_text()
    supports.write_text(text.replace("{6: [", "{5: [", 1))
    refused(["classes of this fold", "copy the lists"], list_of, table, cfg.Data, "train")
    for torn in (text[:-40], "import os", "{6: 3}", ""):
        supports.write_text(torn)
        refused(["sub_class_file_list_0.txt", "copy both"], list_of, table, cfg.Data, "train")
    supports.write_text(text)
    name = next(iter(table))
    shorter = {i: pixels for i, pixels in table.items() if i != name}
    listed = (folder / "data_list_0.txt").read_text()
    (folder / "data_list_0.txt").write_text(f"a/{name}.jpg a/{name}.png\n{listed}")
    refused([name, "Data.data_root"], list_of, shorter, cfg.Data, "train")
    supports.unlink()
    refused(["no such file"], list_of, table, cfg.Data, "train")


def test_base_annotation_is_compared_with_the_masks(pictures: Config, tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit2012"
    root.symlink_to(Path(pictures.Data.data_root).parent)
    cfg = changed(pictures, data_root=str(root / "VOC2012"), list_dir=str(tmp_path / "lists"))
    before = check(cfg.Data, "val").mistakes
    prepare_base_annotation("pascal", tmp_path, [0], 1)
    assert check(cfg.Data, "val").mistakes == before
    labels = sorted((tmp_path / "base_annotation/pascal/val/0").iterdir())
    cv2.imwrite(str(labels[3]), np.full((200, 240), 9, np.uint8))
    labels[4].unlink()
    found = [line for line in check(cfg.Data, "val").mistakes if line not in before]
    assert len(found) == 2 and all("prepare base" in line for line in found)
    assert str(labels[3]) in found[0] and str(labels[4]) in found[1]
