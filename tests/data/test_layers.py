"""Masks of more than 254 classes, and of classes that overlap, from the file to the scores."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.other_sets import blob, write, write_picture
from helpers.pictures import data_config, refused
from PIL import Image

from util.config import Config, load_config, to_dict, with_class_names
from util.data import EvalTransform, KeepTransform, TrainTransform, annotate, binary_mask
from util.data.dataset import open_episodes
from util.data.image_io import UnreadableFile, read_label
from util.data.layers import draw_layers, layer_with, layers_png
from util.data.source import Source
from util.data.tables import pixels_by_class
from util.evaluate.metrics import ClassTotals
from util.folds import IGNORED, Fold, around_255, fold_of, read_classes

WIDE = 300


def random_masks(seed: int, classes: list[int]) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {c: blob(rng) for c in classes}


@pytest.mark.parametrize("classes", [[1], [1, 2], [3, 254, 9, 4], [1, 256, 254, 300, 7]])
def test_layers_hold_every_pixel_of_every_class_and_no_other(classes: list[int]) -> None:
    for seed in range(20):
        masks = random_masks(seed, classes)
        layers = draw_layers(masks, 40, 48, max(classes))
        assert layers.dtype == (np.int16 if max(classes) > 254 else np.uint8)
        assert pixels_by_class(layers) == {c: int(m.sum()) for c, m in masks.items()}
        for class_id, mask in masks.items():
            shown = layer_with(layers, 40, class_id)
            assert np.array_equal(shown == class_id, mask)
            first = layers[:40]  # the other pixels are those of the first layer
            assert np.array_equal(shown[~mask], first[~mask])
        deepest = np.sum(list(masks.values()), 0).max()
        assert deepest <= len(layers) // 40 <= len(classes)
        smallest = min(masks, key=lambda c: (masks[c].sum(), c))
        assert np.array_equal(layers[:40] == smallest, masks[smallest])


def test_file_of_16_bits_keeps_every_id_and_255_is_ignored_in_both_kinds(tmp_path: Path) -> None:
    label = np.array([[0, 1, 254, 255], [256, 257, 1000, 32767]], np.int16)
    path = tmp_path / "a.png"
    path.write_bytes(layers_png(label))
    assert np.array_equal(read_label(path, wide=True), label)
    assert pixels_by_class(read_label(path, wide=True)) == dict.fromkeys(
        (1, 254, 256, 257, 1000, 32767), 1
    )
    refused([str(path), "I;16", "8-bit"], read_label, path)
    write(tmp_path / "b.png", label[:1].astype(np.uint8))
    for wide in (False, True):
        narrow = read_label(tmp_path / "b.png", wide=wide)
        assert pixels_by_class(narrow) == {1: 1, 254: 1}
        assert narrow.dtype == (np.int16 if wide else np.uint8)
    write(path, np.full((2, 2), 40000, np.uint16))
    refused(["a.png", "label 40000", "32767"], lambda: read_label(path, wide=True))
    with Image.open(tmp_path / "b.png") as mask:
        mask.convert("RGB").save(path)
    with pytest.raises(UnreadableFile, match="mode RGB; a mask must be an 8-bit palette, or an 8-"):
        read_label(path, wide=True)


def test_binary_masks_ignore_255_and_find_256_after_every_transform() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 1, 254, 255, 256, 257], np.int16), (40, 48))
    image = rng.integers(0, 256, (40, 48, 3), np.uint8)
    for kind in (EvalTransform, KeepTransform, TrainTransform):
        for seed in range(5):
            _, made = kind((33, 41))(image, label, np.random.default_rng(seed))
            assert made.dtype == torch.int16
            assert set(made.unique().tolist()) <= {0, 1, 254, 255, 256, 257}
            for class_id in (1, 254, 256, 257):
                mask = binary_mask(made, class_id)
                assert torch.equal(mask == 255, made == 255)
                assert torch.equal(mask == 1, made == class_id)
    for way in ("bbox", "point", "scribble"):
        weak = annotate(np.where(label == 256, 256, 0).astype(np.int16), 256, way, "a")
        assert set(np.unique(weak)) <= {0, 256} and (weak == 256).any()


def test_base_labels_skip_255_and_keep_what_is_ignored() -> None:
    names = around_255(tuple(f"c{i}" for i in range(400)), IGNORED)
    assert len(names) == 401 and names[254] == IGNORED
    for novel in ((), (1, 2, 3), (256, 401), tuple(range(1, 201))):
        fold = Fold(names, novel)
        table, base = fold.base_table(), fold.base
        assert 255 not in base and len(base) == 400 - len(novel)
        wanted = {c: i + 1 + (i >= 254) for i, c in enumerate(base)}  # by hand: 255 is left out
        assert {c: int(table[c]) for c in base} == wanted
        assert table[255] == 255 and not table[[0, *novel]].any()
        assert [fold.channels.index(c) + 1 for c in base] == list(wanted.values())
        assert len(fold.channels) == max(wanted.values())
    narrow = Fold(tuple(f"c{i}" for i in range(254)), (3,)).base_table()
    assert narrow.dtype == np.uint8 and len(narrow) == 256


def test_scores_of_more_than_255_labels_leave_out_ignored_pixels() -> None:
    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.choice([0, 1, 254, 255, 256, 300], (50, 60)))
    prediction = torch.from_numpy(rng.choice([0, 1, 254, 255, 256, 300], (50, 60)))
    totals = ClassTotals(WIDE, torch.device("cpu"))
    totals.add(prediction, target)
    counted = target != 255
    for c in range(WIDE + 1):
        hit = int(((prediction == c) & (target == c) & counted).sum())
        union = int((((prediction == c) | (target == c)) & counted).sum())
        there = int(((target == c) & counted).sum())
        assert totals.totals[c].tolist() == [hit, union, there]


@pytest.fixture
def own(tmp_path: Path) -> Config:
    """A wide data set of eight images whose three classes overlap: 254, 256 and 300."""
    names = [f"class {i}" for i in range(1, WIDE + 1)]
    names[254] = IGNORED
    root = tmp_path / "own"
    for number in range(8):
        rng = np.random.default_rng(number)
        masks = random_masks(number, [254, 256] if number < 4 else [256, 300, 254])
        write_picture(root / f"images/{number}.jpg", masks[256], rng)
        layers = draw_layers(masks, 40, 48, WIDE)
        layers[:2, :9] = 255
        path = root / f"masks/{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(layers_png(layers))
    (root / "classes.txt").write_text("\n".join(names))
    return data_config(
        data_set="custom", data_root=str(root), list_dir=str(tmp_path / "lists"), classes=(),
        novel=("class 300",), base=("class 254", "class 256"), min_pixels=1, missing="error",
    )  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
def test_episodes_see_all_pixels_of_their_class(own: Config, tmp_path: Path, cached: bool) -> None:
    cfg = replace(own, Data=replace(own.Data, cache=str(tmp_path / "c") if cached else "",
                                    augment=False, size=65))  # fmt: skip
    cfg = with_class_names(cfg)
    for _ in range(1 + cached):  # from the files, then from the cache
        for subset in ("train", "val"):
            episodes, _ = open_episodes(cfg, subset, 1)
            for i in range(8):
                episode = episodes[i]
                plan, number = episode.plan, int(episode.plan.query)
                mask = random_masks(number, [254, 256] if number < 4 else [256, 300, 254])
                wanted = mask[plan.class_id].astype(np.uint8)
                wanted[:2, :9] = 255
                wanted = cv2.resize(wanted, (65, 65), interpolation=cv2.INTER_NEAREST)
                assert np.array_equal(episode.query_mask.numpy(), wanted)
                base = episode.query_base_mask
                assert set(base.unique().tolist()) <= {0, 1, 2, 255}
                if subset == "train":
                    number = [254, 256].index(plan.class_id)
                    assert episode.class_index == number
                    assert np.array_equal(base.numpy() == number + 1, wanted == 1)
                assert (episode.support_mask == 1).any()


def test_cache_of_a_set_that_grows_or_shrinks_is_made_again(own: Config, tmp_path: Path) -> None:
    root, cache = Path(own.Data.data_root), str(tmp_path / "c")
    write(root / "masks/0.png", np.full((40, 48), 7, np.uint8))
    for classes in (WIDE, 10, WIDE):
        source = Source(root, "custom", "val", classes, cache)
        for _ in range(2):
            image, label = source.load("0")
            assert image.shape == (40, 48, 3) and (label == 7).all()
            assert label.dtype == (np.int16 if classes == WIDE else np.uint8)


def test_mask_of_another_size_is_no_mask_with_layers(own: Config) -> None:
    root = Path(own.Data.data_root)
    source = Source(root, "custom", "val", 10)
    for shape in ((79, 48), (80, 47), (20, 48)):
        write(root / "masks/0.png", np.zeros(shape, np.uint8))
        refused([f"the mask is {shape[1]}x{shape[0]} pixels", "48x40"], source.decode, "0")


def test_novel_and_base_classes_come_from_files_and_stay_in_the_config(
    own: Config, tmp_path: Path
) -> None:
    root = Path(own.Data.data_root)
    path = tmp_path / "x.yaml"
    path.write_text(f"Data: {{data_set: custom, data_root: {root}, split: 7}}")
    refused(
        ["Data.novel names no class", "novel_7.txt"], lambda: with_class_names(load_config(path))
    )
    (root / "novel_7.txt").write_text("class 9\nclass 256\n")
    fold = fold_of(with_class_names(load_config(path)).Data)
    assert fold.novel == (9, 256) and len(fold.base) == WIDE - 3
    (root / "base.txt").write_text("class 1\nclass 300\n")
    cfg = with_class_names(load_config(path))
    assert (cfg.Data.novel, cfg.Data.base) == (("class 9", "class 256"), ("class 1", "class 300"))
    assert fold_of(cfg.Data).base == (1, 300) and cfg.num_base_classes == 2
    for name in ("novel_7.txt", "base.txt", "classes.txt"):
        (root / name).unlink()
    assert to_dict(with_class_names(cfg)) == to_dict(cfg)  # nothing is read again


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("novel_0.txt", "class 2\nclass x\n", ["novel_0.txt", "'class x'"]),
        ("novel_0.txt", IGNORED, ["novel_0.txt", "'ignored'"]),
        ("novel_0.txt", "", ["novel_0.txt", "names no class"]),
        ("base.txt", "class 1\n", ["'class 1' is novel, too"]),
        ("classes.txt", "\n".join(map(str, range(300))), ["line 255 is '254'", "'ignored'"]),
        ("classes.txt", "\n".join(map(str, range(40000))), ["40000 classes", "32767"]),
    ],
)
def test_wrong_lists_of_classes_are_refused(
    own: Config, file: str, text: str, words: list[str]
) -> None:
    root = Path(own.Data.data_root)
    (root / "novel_0.txt").write_text("class 1\n")
    (root / file).write_text(text)
    cfg = replace(own, Data=replace(own.Data, novel=(), base=()))
    refused(words, with_class_names, cfg)


def test_order_of_classes_takes_turns_and_draws_from_each_class(own: Config) -> None:
    cfg = replace(own, Data=replace(own.Data, novel=("class 256", "class 300"), base=()))
    cfg = replace(cfg, Eval=replace(cfg.Eval, order="classes"))
    episodes, _ = open_episodes(with_class_names(cfg), "val", 3)
    plans = [episodes.sampler.plan(i) for i in range(200)]
    assert [plan.class_id for plan in plans] == [256, 300] * 100
    fold = episodes.sampler.fold
    for class_id in (256, 300):
        queries = {plan.query for plan in plans if plan.class_id == class_id}
        assert queries == set(fold.by_class[class_id])
    assert all(plan.query not in plan.supports for plan in plans)
    assert plans == [episodes.sampler.plan(i) for i in range(200)]


def test_read_classes_of_one_class_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("lung\n")
    assert read_classes(tmp_path) == ("lung",)
