"""Folders of a mix: overlapping and many classes, and what is refused in one line."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.drawn import write_pair, write_rectangles
from helpers.pictures import data_config, refused

from util.data.check import check
from util.data.mixed import open_source
from util.folds import fold_of, mixed_sets, united_names


def test_overlapping_classes_lie_on_top_as_in_their_set(tmp_path: Path) -> None:
    for name, classes in (("one", ("car", "eye", "head")), ("two", ("boat", "head", "eye"))):
        layers = np.zeros((60, 80), np.uint8)
        layers[:, :] = 0
        first, second = layers.copy(), layers.copy()
        first[10:50, 10:50], second[5:55, 5:60] = 2, 3
        write_pair(tmp_path / name / "images", tmp_path / name / "masks", "a", first)
        cv2.imwrite(str(tmp_path / name / "masks/a.png"), np.concatenate((first, second)))
        (tmp_path / name / "classes.txt").write_text("\n".join(classes))
        for subset in ("train", "val"):
            (tmp_path / name / f"{subset}.txt").write_text("a\n")
    cfg = data_config(data_set="mix", mix=[f"custom:{tmp_path}/{n}" for n in ("one", "two")])
    source = open_source(cfg.Data, "train")
    head, eye = (fold_of(cfg.Data).names.index(n) + 1 for n in ("head", "eye"))
    assert source.has_layers("one/a") and source.has_layers("two/a")
    assert (source.load("one/a", head)[1] == head).sum() == 50 * 55
    assert (source.load("two/a", head)[1] == head).sum() == 40 * 40
    assert (source.load("two/a", eye)[1] == eye).sum() == 50 * 55


def test_mix_of_more_than_254_classes_has_wide_masks(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rectangles(tmp_path / name, "custom", 200, 1)
        kinds = "".join(f"{name} {c}\n" for c in range(1, 201))
        (tmp_path / name / "classes.txt").write_text(kinds)
    cfg = data_config(data_set="mix", mix=[f"custom:{tmp_path}/{n}" for n in ("one", "two")])
    names, source = fold_of(cfg.Data).names, open_source(cfg.Data, "train")
    assert len(names) == 401 and names[254] == "ignored" and names[255] == "two 55"
    own = source.parts["two"].load("train003")[1]
    mixed = source.load("two/train003")[1]
    assert mixed.dtype == np.int16
    for value in np.unique(own):
        wanted = int(value) if value in (0, 255) else names.index(f"two {value}") + 1
        assert (mixed[own == value] == wanted).all()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mix": ["voc:data"]}, ["Data.mix", "'voc:data'", "write pascal:FOLDER"]),
        ({"mix": []}, ["needs Data.mix"]),
        ({"mix": ["custom:a/x", "custom:b/x"]}, ["called 'x'", "rename"]),
        ({"mix": ["coco:a"], "mix_weights": [1, 2]}, ["Data.mix_weights wants 1 numbers"]),
        ({"mix": ["coco:a"], "mix_weights": [0]}, ["Data.mix_weights wants 1 numbers"]),
        ({"mix": ["coco:a"], "data_set": "coco"}, ["need Data.data_set mix"]),
        ({"mix": ["coco:a"], "trained_on": "other"}, ["Data.trained_on needs one data set"]),
    ],
)
def test_wrong_mix_is_one_line(keys: dict, words: list[str]) -> None:
    refused(words, lambda: data_config(**{"data_set": "mix", **keys}))


def test_set_without_lists_is_refused_where_nothing_is_novel(tmp_path: Path) -> None:
    write_rectangles(tmp_path / "one", "custom", 3)
    (tmp_path / "one" / "val.txt").unlink()
    cfg = data_config(data_set="mix", mix=[f"custom:{tmp_path}/one"])
    refused(["val.txt", "divide the images"], open_source, cfg.Data, "val")
    (tmp_path / "one" / "classes.txt").write_text("tv\nTV\ncar\n")
    refused(["'TV' is twice there"], open_source, cfg.Data, "train")


def test_label_that_is_no_class_of_its_set_is_refused(tmp_path: Path) -> None:
    write_rectangles(tmp_path / "one", "custom", 3)
    write_rectangles(tmp_path / "two", "custom", 2)
    label = np.full((60, 80), 3, np.uint8)
    write_pair(tmp_path / "two/images", tmp_path / "two/masks", "train000", label)
    cfg = data_config(data_set="mix", mix=[f"custom:{tmp_path}/{n}" for n in ("one", "two")])
    words = ["two/masks/train000.png", "label 3"]
    refused(words, open_source(cfg.Data, "train").load, "two/train000")
    assert any("label 3" in line for line in check(cfg.Data, "train").mistakes)


def test_names_are_those_of_the_first_set() -> None:
    assert united_names(mixed_sets(["pascal:a", "coco:b"]))[:3] == ("aeroplane", "bicycle", "bird")
    assert len(united_names(mixed_sets(["pascal:a", "coco:b"]))) == 80
    assert len(united_names(mixed_sets(["coco:b"]))) == 80
