"""Folders and lists of strangers: hidden files, other suffixes, accents, byte-order marks."""

import codecs
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from helpers.downloads import run
from helpers.entries import call
from helpers.pictures import refused
from helpers.trials import lay
from PIL import Image

import train_base
from util.config import load_config, with_class_names
from util.data.check import _main as check_entry
from util.data.dataset import open_episodes
from util.data.listing import list_pictures, read_ids
from util.data.source import Source
from util.runtime.files import atomic_write
from util.runtime.texts import read_lines

NAMES = ("cup", "plate", "spoon")


def save_pair(folder: Path, stem: str, class_id: int, suffix: str = ".jpg") -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    label = np.zeros((80, 80), np.uint8)
    label[:60, :60] = class_id
    Image.fromarray(np.dstack([60 * label] * 3)).save(folder / f"images/{stem}{suffix}")
    Image.fromarray(label).save(folder / f"masks/{stem}.png")


@pytest.fixture
def own(tmp_path: Path) -> Callable[[], Path]:
    """A data set of three classes and twelve images in `data`; a function that returns a config."""
    for number in range(12):
        save_pair(tmp_path / "data", f"p{number:02}", 1 + number % 3)
    (tmp_path / "data/classes.txt").write_text("\n".join(NAMES))

    def config() -> Path:
        content = {
            "_base_": str(ROOT / "config/_base_/demo.yaml"),
            "Data": {"data_set": "custom", "data_root": f"{tmp_path}/data", "novel": ["spoon"],
                     "list_dir": f"{tmp_path}/lists", "missing": "error"},
            "Method": {"pre_weight": f"{tmp_path}/base.pth"},
            "Train": {"save_path": f"{tmp_path}/exp"},
        }  # fmt: skip
        (tmp_path / "fold.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "fold.yaml"

    return config


def checked(config: Path, capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    """Exit status and output of `util.data.check`."""
    capsys.readouterr()
    status = call(check_entry, str(config), *words, config=False)
    return status, capsys.readouterr().out


def stage_one(config: Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    capsys.readouterr()
    words = ["--config", str(config), "--gpus", "0", "Base.max_iterations=1", "Base.batch_size=2"]
    status = call(train_base.train_base, *words, config=False)
    return status, "".join(capsys.readouterr())


def test_hidden_files_beside_images_and_masks_are_counted_and_not_used(
    own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(5):
        (tmp_path / f"data/images/._p{number:02}.jpg").write_bytes(b"\0\5\x16\7")
        (tmp_path / f"data/masks/._p{number:02}.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "data/masks/.DS_Store").write_bytes(b"Bud1")
    status, told = checked(own(), capsys)
    assert status == 0, told
    assert told.count(f"{tmp_path}/data/images: not used: 5 hidden files, such as ._p00.jpg") == 1
    assert told.count(f"{tmp_path}/data/masks: not used: 6 hidden files, such as .DS_Store") == 1
    status, told = stage_one(own(), capsys)
    assert status == 0 and "images: not used: 5 hidden files" in told


def test_files_of_other_kinds_and_images_without_a_mask_are_counted_for_each_reason(
    own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data/images/Thumbs.db").write_bytes(b"x")
    (tmp_path / "data/images/more").mkdir()
    for stem in ("p00", "p03"):
        (tmp_path / f"data/masks/{stem}.png").rename(tmp_path / f"data/masks/{stem}.gif")
    status, told = checked(own(), capsys)
    assert status == 0
    assert "images: not used: 2 files or folders whose names do not end in .jpg," in told
    assert "images: not used: 2 images without a mask, such as p00.jpg" in told
    assert "masks: not used: 2 files or folders whose names do not end in .png, such as p0" in told
    cfg = with_class_names(load_config(own()))
    _, report = open_episodes(cfg, "train", 0)
    assert any("2 images without a mask" in line for line in report)
    assert "train: left out 4 of 10 images: they hold a novel class" in report


def test_masks_that_no_list_names_and_masks_without_an_image_are_counted(
    own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data/train.txt").write_text("p00\np01\np03\np04\n")
    (tmp_path / "data/val.txt").write_text("p02\np05\np08\n")
    (tmp_path / "data/images/p00.jpg").unlink()
    status, told = checked(own(), capsys)
    assert status == 2 and "p00.jpg: no such image" in told
    assert "masks: not used: 5 masks that neither list names, such as p06.png" in told
    status, told = checked(own(), capsys, "Data.missing=skip")
    assert status == 0 and "masks: not used: 1 masks without an image, such as p00" in told


@pytest.mark.parametrize(("image", "mask"), [(".JPG", ".PNG"), (".Jpeg", ".Png"), (".TIF", ".PNG")])
def test_suffixes_in_other_case_are_the_same_suffixes(
    image: str, mask: str, own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(12):
        save_pair(tmp_path / "data", f"p{number:02}", 1 + number % 3, image)
        (tmp_path / f"data/images/p{number:02}.jpg").unlink(missing_ok=True)
        path = tmp_path / f"data/masks/p{number:02}.png"
        path.rename(path.with_suffix(mask))
    status, told = checked(own(), capsys)
    assert status == 0 and "train: 12 masks" in told and "not used" not in told
    assert stage_one(own(), capsys)[0] == 0


@pytest.mark.parametrize(("listed", "image", "mask"), ["CDD", "DCC", "CCD", "DDC"])
def test_accents_may_be_one_character_or_two_in_lists_images_and_masks(
    listed: str, image: str, mask: str, own: Callable[[], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """macOS writes the names of files decomposed (NFD), most editors composed (NFC)."""

    def named(form: str) -> str:
        return unicodedata.normalize(f"NF{form}", "Großer Löffel é")

    save_pair(tmp_path / "data", "x", 1)
    (tmp_path / "data/images/x.jpg").rename(tmp_path / f"data/images/{named(image)}.jpg")
    (tmp_path / "data/masks/x.png").rename(tmp_path / f"data/masks/{named(mask)}.png")
    lines = [*(f"p{number:02}" for number in range(12)), named(listed)]
    (tmp_path / "data/train.txt").write_text("\n".join(lines), encoding="utf-8")
    status, told = checked(own(), capsys)
    assert status == 0 and "train: 13 masks" in told and "not used" not in told
    source = Source(tmp_path / "data", "custom", "train", 3)
    assert source.load(named("C"))[1].max() == 1


def test_two_files_of_one_name_in_two_forms_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / f"{unicodedata.normalize(form, 'é')}.png").write_bytes(b"")
    refused(["has the same name; rename one"], list_pictures, tmp_path, (".png",))


ENCODINGS = {
    "plain": lambda text: text.encode(),
    "BOM": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 LE": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16 BE": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_any_editor_gives_the_same_classes_and_ids(
    encoding: str, end: str, own: Callable[[], Path], tmp_path: Path
) -> None:
    for name, lines in (
        ("classes.txt", ["cup", " plate ", "Löffel"]), ("train.txt", ["p00", "", "p01", "p00"]),
        ("novel_0.txt", ["Löffel"]), ("base.txt", ["cup", "plate"]),
    ):  # fmt: skip
        (tmp_path / "data" / name).write_bytes(ENCODINGS[encoding](end.join(lines)))
    cfg = with_class_names(load_config(own(), ["Data.novel=[]"]))
    assert cfg.Data.classes == ("cup", "plate", "Löffel") and cfg.Data.novel == ("Löffel",)
    assert read_ids(tmp_path / "data/train.txt") == ["p00", "p01"]


@pytest.mark.parametrize(
    "content", ["Löffel".encode("latin-1"), "cup\nplate".encode("utf-16-le"), b"\x80\x02}q\x01."]
)
def test_text_that_is_not_utf_8_is_named_with_the_remedy(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    refused(
        ["classes.txt: is no UTF-8 text", "save it again"], read_lines, tmp_path / "classes.txt"
    )


@pytest.mark.parametrize("place", [0.3, 0.6])
@pytest.mark.parametrize("twice", [False, True])
def test_check_names_a_jpeg_whose_inside_is_damaged(
    place: float,
    twice: bool,
    own: Callable[[], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """It has its end, but its pixels are cut off, or a part of them stands there twice."""
    path, rng = tmp_path / "data/images/p04.jpg", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)).save(path)
    content = path.read_bytes()
    middle = int(place * len(content))
    rest = content[middle - 500 :] if twice else b"\xff\xd9"
    path.write_bytes(content[:middle] + rest)
    status, told = checked(own(), capsys)
    reason = "is damaged inside (" if twice else "cannot be read as an image: pixels at its end"
    assert status == 2 and f"wrong: {path}: {reason}" in told


def test_check_asks_about_masks_whose_background_is_the_brighter_of_two_colors(
    own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number, colors in ((0, [255] * 3 + [0] * 3), (3, [90] * 3 + [80] * 3), (6, [0, 0, 9, 255])):
        label = Image.open(tmp_path / f"data/masks/p{number:02}.png")
        label.putpalette([*colors, *[0] * (6 - len(colors))])
        label.save(tmp_path / f"data/masks/p{number:02}.png")
    status, told = checked(own(), capsys)
    assert status == 0
    assert "note: " in told and "2 masks of two colors" in told and "such as p00.png" in told


def test_trial_04_cut_off_jpeg_is_named_by_check(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = lay("04_truncated_jpeg", tmp_path / "trial")
    status, told = checked(folder / "fold.yaml", capsys)
    [named] = {line for line in told.splitlines() if "wrong: " in line}
    assert status == 2 and "photo_1.jpg: cannot be read as an image: " in named


@pytest.mark.parametrize("listed", ["", "train_bom.txt", "train_utf16.txt"])
def test_trial_08_byte_order_marks_are_no_part_of_a_name(
    listed: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = lay("08_bom", tmp_path / "trial")
    if listed:
        shutil.copy(folder / listed, folder / "data/train.txt")
    status, told = checked(folder / "fold.yaml", capsys)
    assert status == 0 and "nothing is wrong" in told and " cup " in told


def test_trial_09_companions_of_macos_are_counted_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = lay("09_apple_double", tmp_path / "trial")
    status, told = checked(folder / "fold.yaml", capsys)
    assert status == 0 and "images: not used: 16 hidden files" in told
    assert stage_one(folder / "fold.yaml", capsys)[0] == 0


def test_trial_07_webp_pictures_pass_from_prepare_to_training(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = lay("07_webp_bmp_tif", tmp_path / "trial")
    words = ["--images", folder / "photos", "--labels", folder / "labels.json"]
    assert run("custom", *words, "--out", folder / "out").status == 0
    assert stage_one(folder / "fold.yaml", capsys)[0] == 0


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif"])
def test_picture_of_any_format_is_trained_on(
    suffix: str, own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(tmp_path / "data/images")
    for number in range(12):
        save_pair(tmp_path / "data", f"p{number:02}", 1 + number % 3, suffix)
    status, told = checked(own(), capsys)
    assert status == 0 and "not used" not in told
    assert stage_one(own(), capsys)[0] == 0


@pytest.mark.parametrize("length", [201, 255])
def test_file_with_a_long_name_is_written_and_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("ä" * ((length - 5) // 2) + "a.png")
    assert 195 < len(path.name.encode()) <= 255
    atomic_write(path, b"first")
    atomic_write(path, b"second")
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


def test_data_set_with_names_of_255_bytes_is_cached_and_checked(
    own: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stem = "n" * 251
    save_pair(tmp_path / "data", stem, 1)
    status, told = checked(own(), capsys)
    assert status == 0 and "train: 13 masks" in told
    source = Source(tmp_path / "data", "custom", "train", 3, str(tmp_path / "cache"))
    assert np.array_equal(source.load(stem)[0], source.load(stem)[0])
    assert (tmp_path / f"cache/{stem}.npy").is_file()


def test_home_folder_may_be_written_as_a_tilde(
    own: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    config = own()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    words = ["Data.data_root=~/data", "Data.list_dir=~/lists", "Train.save_path=~/exp"]
    cfg = load_config(config, words)
    assert (cfg.Data.data_root, cfg.Train.save_path) == (f"{tmp_path}/data", f"{tmp_path}/exp")
    status, told = checked(Path("~/fold.yaml"), capsys, *words)
    assert status == 0 and f"{tmp_path}/data: nothing is wrong" in told
