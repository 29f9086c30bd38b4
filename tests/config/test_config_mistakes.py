"""A mistake in a config is one line with its source, the key and the remedy."""

import os
import re
import time
from pathlib import Path

import pytest
from helpers import ROOT

from util.config import config_from, load_config
from util.runtime.errors import UserError

R50 = ROOT / "config/pascal/pascal_split0_resnet50.yaml"


def mistake(path: Path, *overrides: str) -> str:
    """Return the message that a file with overrides is refused with."""
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("Train.lrr=1", ("Train.lrr", "did you mean Train.lr?")),
        ("lr=1", ("unknown key lr", "Base.lr or Train.lr")),
        ("Train.shot=5", ("Train.shot", "did you mean Data.shot?")),
        ("Data.lr=5", ("Data.lr", "did you mean Base.lr or Train.lr?")),
        ("Data.qqq=5", ("Data.qqq", "there is Data.data_set, Data.data_root,")),
        ("qqq=5", ("unknown key qqq", "there is Data, Method,")),
        ("Trian.zzz=1", ("Trian.zzz", "did you mean Train?")),
        ("Trian.lr=1", ("Trian.lr", "did you mean Train.lr?")),
        ("trian.lrr=1", ("trian.lrr", "did you mean Train.lr?")),
        ("train.LR=1", ("train.LR", "did you mean Train.lr?")),
        ("epoch=1", ("unknown key epoch", ".epochs?")),
        ("Data.datset=coco", ("Data.datset", "did you mean Data.data_set?")),
        ("Train.lr", ("'Train.lr'", "Section.key=value")),
        ("Train.lr=[1", ("Train.lr", "not valid YAML")),
        ("Train.lr=fast", ("Train.lr wants a number", "'fast'")),
        ("Train.lr=true", ("Train.lr wants a number", "True")),
        ("Train.lr=.nan", ("Train.lr wants a number", "nan")),
        ("Train.lr=1e999", ("Train.lr wants a number", "'1e999'")),
        ("Train.lr=-.inf", ("Train.lr wants a number", "given -inf")),
        ("Train.lr=", ("Train.lr wants a number", "None")),
        ("Train.lr=0", ("Train.lr wants a number, above 0, given 0",)),
        ("Train.epochs=true", ("Train.epochs wants an integer", "True")),
        ("Train.epochs='3'", ("Train.epochs wants an integer", "given '3'")),
        ("Train.epochs=3.0", ("Train.epochs wants an integer", "given 3.0")),
        ("Train.epochs=2.5", ("Train.epochs wants an integer", "2.5")),
        ("Train.adversarial=1", ("Train.adversarial wants true or false", "given 1")),
        ("Train.save_path=7", ("Train.save_path wants text", "given 7")),
        ("Train.save_path=", ("Train.save_path wants text, not empty, given None",)),
        ("Data.split=4", ("Data.split wants at most 3", "given 4")),
        ("Data.shot=0", ("Data.shot wants an integer, at least 1 and at most 1000, given 0",)),
        ("Data.rotate=181", ("Data.rotate wants a number, at least 0 and at most 180, given 181",)),
        ("Data.data_set=voc", ("Data.data_set wants pascal, coco, custom or mix, given 'voc'",)),
        ("Data.trained_on=voc", ("Data.trained_on wants '', coco or other, given 'voc'",)),
        ("Data.missing=", ("Data.missing wants error or skip, given None",)),
        ("Data.size=480", ("Data.size must be 1 mod 8", "481")),
        (f"Data.size={'9' * 400}", ("Data.size holds a number of 19 digits or more", "smaller")),
        ("Data.scale=[1.2, 0.8]", ("Data.scale", "smaller number first")),
        ("Data.scale=1", ("Data.scale wants a list of 2, each a number, above 0, given 1",)),
        ("Data.scale=[1]", ("Data.scale wants a list of 2", "given [1]")),
        ("Data.scale=[1, 2, 3]", ("Data.scale wants a list of 2", "given [1, 2, 3]")),
        ("Data.scale=[0, 1]", ("Data.scale wants a list of 2", "given [0, 1]")),
        ("Data.novel=cat", ("Data.novel wants a list, each text, given 'cat'",)),
        ("Eval.seeds=[]", ("Eval.seeds wants a list of one or more, each an integer", "[]")),
        ("Eval.seeds=[1.5]", ("Eval.seeds wants a list of one or more, each an integer", "[1.5]")),
        ("Eval.seeds=[1, 1]", ("Eval.seeds", "twice")),
        ("Method.backbone=resnet18", ("Method.backbone", "timm/<name>", "'resnet18'")),
        ("Method.pretrained=package", ("Method.pretrained", "tf_efficientnet_lite0")),
        ("Method.train_kshot=true", ("Method.train_kshot", "Data.shot")),
        ("Method.kshot_trans_dim=0", ("Method.kshot_trans_dim", "Data.shot")),
        ("Train.sub_epoch_val=true Train.evaluate=false", ("Train.sub_epoch_val", "evaluate")),
        ("Data.size=[473, 472]", ("Data.size", "472", "473")),
        ("Data.size=[473]", ("Data.size", "list of 2", "[473]")),
        ("Eval.val_size=-1", ("Eval.val_size", "at least 33", "0")),
        ("Data.use_split_coco=false", ("Data.use_split_coco", "coco")),
        ("Train.adversarial_period=4", ("Train.adversarial_period", "odd")),
        ("Train.feature_store=true", ("Train.feature_store", "Data.augment false")),
        ("Train.accumulate=9", ("Train.accumulate wants at most Train.batch_size, 8, given 9",)),
        ("Data.flip=true", ("Data.flip has no effect with Data.augment",)),
        ("Data.trained_on=coco Data.data_set=coco", ("Data.trained_on coco needs",)),
        ("Method.train_parts=true Train.adversarial=false", ("Method.train_parts",)),
        ("Train.seed_deterministic=true Speed.cudnn_benchmark=true", ("Speed.cudnn_benchmark",)),
        ("Train.lr=2001-13-45", ("not valid YAML",)),
    ],
)
def test_wrong_override_is_one_line_with_source_key_and_remedy(
    override: str, parts: tuple[str, ...]
) -> None:
    message = mistake(R50, *re.split(r" (?=[A-Z])", override))
    assert "command line" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Train: {lrr: 1}", "unknown key Train.lrr; did you mean Train.lr?"),
        ("Trian: {lr: 1}", "unknown section Trian; did you mean Train?"),
        ("zzz: {lr: 1}", "unknown section zzz; there is Data, Method, Base, Train, Eval"),
        ("Train: 5", "section Train wants keys with values, given 5"),
        (
            "Train: {epochs: many}",
            "x.yaml:1: Train.epochs wants an integer, at least 1, given 'many'",
        ),
        ("Train: {lr: {a: 1}}", "x.yaml:1: Train.lr wants a number, above 0, given {'a': 1}"),
        ("just words", "wants sections"),
        ("", "wants sections"),
        ("Train: [", "not valid YAML"),
        ("_base_: 5", "_base_ wants a path or a list of paths, given 5"),
        ("_base_: nowhere.yaml", "nowhere.yaml: cannot read this config file"),
        ("_base_: x.yaml", "_base_ leads back to this file"),
        ("Data:\n  shot: 1\n\nTrain:\n  # comment\n  lrr: 1", "x.yaml:6: unknown key Train.lrr;"),
        ("Data:\n  shot: 1\n  size: 480.5", "x.yaml:3: Data.size wants an integer"),
        ("Data: {}\nTrian: {}", "x.yaml:2: unknown section Trian; did you mean Train?"),
        ("Data:\n  shot: 1\n  shot: 5", "x.yaml:3: Data.shot is in line 2, too; join them"),
        ("Data: {shot: 1}\nData: {size: 65}", "x.yaml:2: Data is in line 1, too"),
        ("Data: &d {size: 0.5}\nBase: {<<: *d}", "x.yaml:1: Data.size wants an integer"),
        ("Base:\n  <<: {sise: 9}", "x.yaml:1: unknown key Base.sise; did you mean Base.size?"),
        ("Data: {yes: 1}", "x.yaml:1: unknown key Data.True"),
    ],
)
def test_mistake_in_a_file_names_the_file_and_the_line(
    tmp_path: Path, text: str, part: str
) -> None:
    message = mistake(write(tmp_path / "x.yaml", text))
    assert part in message and message.startswith(str(tmp_path))


def test_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "_base_: b.yaml")
    write(tmp_path / "b.yaml", "_base_: a.yaml")
    assert "leads back" in mistake(tmp_path / "a.yaml")


def test_mistake_in_a_base_is_refused_although_a_later_file_or_word_replaces_the_value(
    tmp_path: Path,
) -> None:
    write(tmp_path / "base.yaml", "Train:\n  lr: fast")
    top = write(tmp_path / "top.yaml", "_base_: base.yaml\nTrain: {lr: 1}")
    assert "base.yaml:2: Train.lr wants a number" in mistake(top)
    assert "Train.lr wants a number" in mistake(R50, "Train.lr=fast", "Train.lr=1")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (3, "best.pth: its config: wants sections such as `Train:`, given 3"),
        ({"Data": 3}, "best.pth: its config: section Data wants keys with values, given 3"),
        ({"Data": {"shots": 3}}, "best.pth: its config: unknown key Data.shots; did you mean"),
        ({"Data": {"shot": "3"}}, "best.pth: its config: Data.shot wants an integer"),
        ({"Data": {"size": 64}}, "best.pth: its config: Data.size must be 1 mod 8"),
    ],
)
def test_mistake_in_the_config_of_a_checkpoint_names_the_checkpoint(
    sections: object, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config_from(sections, "best.pth")


def bomb(levels: int) -> str:
    """YAML whose few lines stand for 2^levels values."""
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "an alias bomb": (bomb(60), "holds more than 100,000 values"),
    "an alias bomb as a value": (bomb(60) + "\nTrain: {lr: *a59}", "100,000 values"),
    "a list within itself": ("Train: &t [*t]", "or one within itself"),
    "a mapping within itself": ("Train: &t {lr: *t}", "or one within itself"),
    "nesting of 3,000": ("[" * 3000, "not valid YAML"),
    "nesting of 3,000, closed": ("[" * 3000 + "]" * 3000, "not valid YAML"),
    "a number that nobody can read": ("Train: {lr: " + "9" * 5000 + "}", "not valid YAML"),
    "a date that is none": ("Train: {lr: 2001-13-45}", "not valid YAML"),
    "NUL": ("Train: {save_path: 'a\0b'}", "not valid YAML"),
    "NUL, escaped": ('Train: {save_path: "a\\0b"}', "Train.save_path holds the character NUL"),
    "4,000 digits": ("Train: {epochs: " + "9" * 4000 + "}", "19 digits or more"),
    "20 digits in a list": ("Eval: {seeds: [1, 99999999999999999999]}", "19 digits or more"),
    "a megabyte": ("# " + "x" * 1_000_000, "1.0 MB are too large for a config"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_config_is_one_line_within_a_second(name: str, tmp_path: Path) -> None:
    text, said = HOSTILE[name]
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    begin = time.process_time()
    message = mistake(path)
    assert time.process_time() - begin < 5  # a second, on a slow machine
    assert said in message and str(path) in message and "\n" not in message and len(message) < 1000


def test_bases_that_are_named_again_and_again_are_refused(tmp_path: Path) -> None:
    for n in range(26):
        (tmp_path / f"{n}.yaml").write_text(f"_base_: [{n + 1}.yaml, {n + 1}.yaml]")
    (tmp_path / "26.yaml").write_text("{}")
    assert "more than 100 files are read as _base_" in mistake(tmp_path / "0.yaml")


@pytest.mark.parametrize("where", ["config", "base"])
def test_pipe_or_device_is_refused_before_it_is_opened(where: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "base.yaml").write_text("_base_: pipe.yaml")
    path = tmp_path / ("pipe.yaml" if where == "config" else "base.yaml")
    assert mistake(path).startswith(f"{tmp_path}/pipe.yaml: is a pipe or a device")
    assert "is a pipe or a device" in mistake(Path("/dev/zero"))


@pytest.mark.parametrize("word", ['Train.save_path="a\\0b"', "Train.lr=&a [*a]"])
def test_hostile_override_is_one_line(word: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(R50, [word])
    assert str(refused.value).startswith("command line: Train.")


def test_config_in_a_checkpoint_is_bounded_too() -> None:
    inner: list = []
    inner.append(inner)
    with pytest.raises(UserError, match="best.pth: its config: holds more than"):
        config_from({"Train": {"lr": inner}}, "best.pth")
