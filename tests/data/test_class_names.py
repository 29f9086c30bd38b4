"""Names of classes: what a list of them can hold, from the labels to training."""

from pathlib import Path
from typing import Any

import pytest
from helpers.downloads import refused
from helpers.label_files import four_photos, labels, prepare, prepare_trial
from helpers.pictures import data_config
from helpers.trials import lay

from util.class_names import clean_name
from util.folds import fold_of, read_classes
from util.runtime.errors import UserError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return four_photos(tmp_path)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("cup\n(tea)", "cup (tea)"), ("  cup\t", "cup"), ("tea\r\ncup", "tea cup"),
     ("tea\u2028cup", "tea cup"), ("cup\x00\x85", "cup"), ("cafe\u0301", "caf\u00e9"),
     ("\ud83dcup", "cup"), ("hot \xa0 dog", "hot dog")],
)  # fmt: skip
def test_name_that_a_line_cannot_hold_is_cleaned_and_said(
    given: str, kept: str, here: Path
) -> None:
    content = labels()
    content["categories"][0]["name"] = given
    result = prepare(here, content)
    assert result.status == 0 and f"which becomes {kept!r}" in result.err
    assert read_classes(here / "out") == (kept, "plate", "spoon")
    assert clean_name(kept) == kept


@pytest.mark.parametrize(
    ("given", "words"),
    [("", "category 1 has no name"), (" \n", "category 1 has no name"), (None, "has no name"),
     ([5], "category 1 has the name [5], which is no text"),
     (True, "has the name True"), ("plate", "'plate'"), ("plate ", "'plate'"),
     ("pla\nte", None), ("\u200a\x07", "category 1 has no name")],
)  # fmt: skip
def test_blank_and_doubled_names_are_refused(given: Any, words: str | None, here: Path) -> None:
    content = labels()
    content["categories"][0]["name"] = given
    result = prepare(here, content)
    if words is None:  # another name, after all
        assert result.status == 0
    else:
        refused(result, words)


def test_category_called_as_what_stands_for_255_is_refused_where_that_is_used(here: Path) -> None:
    content = labels()
    content["categories"] += [{"id": i, "name": f"kind {i}"} for i in range(4, 300)]
    content["categories"][7]["name"] = "ignored"
    refused(prepare(here, content), "two classes", "'ignored'")


@pytest.mark.parametrize("name", ["_background_", "background", "Background", "__background__"])
def test_background_as_first_class_is_warned_of_at_prepare_and_when_it_is_read(
    name: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = labels()
    content["categories"][0]["name"] = name
    result = prepare(here, content)
    assert result.status == 0
    warning = f"its first class is {name!r}, so that pixels of 1 are an object of this name"
    assert warning in result.err and "remove the name if 1 means 'plate'" in result.err
    caplog.clear()
    read_classes(here / "out")
    read_classes(here / "out")
    assert caplog.text.count(warning) == 1  # once for a file
    (here / "classes.txt").write_text(f"cup\n{name}\n")
    caplog.clear()
    read_classes(here)
    assert not caplog.text


@pytest.mark.parametrize(
    ("names", "one", "other"),
    [(("Cat", "cat ", "dog"), "Cat", "cat"), (("hot dog", "cup", "hot-dog"), "hot dog", "hot-dog"),
     (("cup", "tea_cup", "Tea Cup"), "tea_cup", "Tea Cup")],
)  # fmt: skip
def test_names_that_differ_little_are_warned_of_as_two_classes(
    names: tuple[str, ...], one: str, other: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = labels()
    for category, name in zip(content["categories"], names, strict=True):
        category["name"] = name
    words = f"{one!r} and {other!r} count as two classes; give both the same number"
    assert words in prepare(here, content).err
    caplog.clear()
    assert len(read_classes(here / "out")) == 3
    assert caplog.text.count(words) == 1


@pytest.mark.parametrize("comment", ["# my classes", "#cup", "# 1: cup"])
def test_comment_in_a_list_of_classes_is_warned_of_with_its_number(
    comment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(f"plate\n\n{comment}\nspoon\n")
    assert read_classes(tmp_path) == ("plate", comment, "spoon")
    assert f"{path}: {comment!r} counts as a class, number 2, as every line does" in caplog.text


@pytest.mark.parametrize("name", ["classes.txt", "novel_0.txt", "base.txt"])
def test_list_of_classes_in_another_case_or_as_a_folder_is_named(name: str, tmp_path: Path) -> None:
    texts = {"classes.txt": "cup\nplate\nspoon\n", "novel_0.txt": "cup\n", "base.txt": "plate\n"}
    for each, text in texts.items():
        (tmp_path / each).write_text(text)
    data = data_config(data_set="custom", data_root=str(tmp_path), novel=()).Data
    fold = fold_of(data)
    assert (fold.novel, fold.unused) == ((1,), (3,))
    path = tmp_path / name
    path.rename(tmp_path / name.upper())
    with pytest.raises(UserError, match=f"{name.upper()}: is not read under this name; call it "):
        fold_of(data)
    (tmp_path / name.upper()).unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{path}: is a folder; put a text file of the names there"):
        fold_of(data)


@pytest.mark.parametrize(
    ("novel", "base", "place"),
    [("dog # the novel one", "plate", "novel_0.txt"), ("cup", "Plate", "base.txt")],
)
def test_file_that_names_no_class_is_named_itself(
    novel: str, base: str, place: str, tmp_path: Path
) -> None:
    for name, text in (("classes", "cup\nplate\nspoon"), ("novel_0", novel), ("base", base)):
        (tmp_path / f"{name}.txt").write_text(text)
    wrong = novel if place == "novel_0.txt" else base
    with pytest.raises(UserError, match=f"{tmp_path / place}: no class is named '{wrong}'; there"):
        fold_of(data_config(data_set="custom", data_root=str(tmp_path), novel=()).Data)
    with pytest.raises(UserError, match="^Data.novel: no class is named 'knife'"):
        fold_of(data_config(data_set="custom", data_root=str(tmp_path), novel=("knife",)).Data)


def test_single_category_is_said_to_be_too_few_to_train_on(here: Path) -> None:
    content = labels()
    del content["categories"][1:]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]
    result = prepare(here, content)
    assert result.status == 0 and "a single category, which is too few to train on" in result.err
    for novel in (("cup",), ("spoon",)):  # the reason is the same
        config = data_config(data_set="custom", data_root=str(here / "out"), novel=novel)
        with pytest.raises(UserError, match="a single class, 'cup'.*label a second class"):
            fold_of(config.Data)


@pytest.mark.parametrize(
    ("name", "words"),
    [("blank", "category 1 has no name"), ("twice", "'plate'"), ("spaces", "'plate'"),
     ("newline", ""), ("one", "")],
)  # fmt: skip
def test_trial_06_names_are_refused_or_come_back(name: str, words: str, tmp_path: Path) -> None:
    folder = lay("06_class_names", tmp_path / "t")
    result = prepare_trial(folder, f"{name}.json")
    if words:
        refused(result, words)
    elif name == "one":
        assert result.status == 0 and "too few to train on" in result.err
    else:
        assert result.status == 0
        assert read_classes(folder / "out") == ("cup (tea)", "plate", "spoon", "lamp")
