"""Every key of the published configs has a line in docs/published_configs.md."""

import gzip
import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from util.config import KEYS, flatten, load_config, to_dict
from util.config import __main__ as command
from util.config.published import TABLE, is_published
from util.config.write_docs import published_page
from util.data.batches import Batches
from util.runtime.cli import main
from util.runtime.distributed import Ranks

PAGE = ROOT / "docs/published_configs.md"
PUBLISHED = yaml.safe_load((ROOT / "tests/golden/published_keys.yaml").read_text())


def rows() -> dict[str, str]:
    """Return published key -> what the page says that it is here."""
    found: dict[str, str] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            theirs, ours = (cell.strip() for cell in line.strip("|").split("|")[:2])
            for key in re.findall(r"`([\w.]+)`", theirs):
                assert key not in found, f"{key} has two lines"
                found[key] = ours
    return found


@pytest.mark.parametrize("system", PUBLISHED)
def test_every_published_key_has_a_line(system: str) -> None:
    keys = {f"{section}.{k}" for section, names in PUBLISHED[system].items() for k in names}
    assert len(keys) > 50 and not keys - rows().keys()


def test_page_has_no_key_that_nobody_published() -> None:
    known = {f"{s}.{k}" for found in PUBLISHED.values() for s, ks in found.items() for k in ks}
    assert rows().keys() == known


def test_keys_of_the_page_exist_here() -> None:
    for key, ours in rows().items():
        named = re.findall(r"`([A-Z]\w+\.\w+)`", ours)
        assert named or ours == "none", key
        assert set(named) <= KEYS.keys(), key


@pytest.mark.parametrize(
    ("config", "words", "each"),
    [
        ("pascal/pascal_split0_resnet50", ["Train.batch_size=32"], 8),
        ("coco/coco_split0_resnet50", ["Train.batch_size=16"], 4),
    ],
)
def test_documented_override_gives_the_published_total_on_four_gpus(
    config: str, words: list[str], each: int
) -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    assert words[0] in page
    size = load_config(ROOT / f"config/{config}.yaml", words).Train.batch_size
    for rank in range(4):
        share = next(iter(Batches(1000, size, 1, Ranks(rank, 4, None))))
        assert len(share) == each


# --- the command --------------------------------------------------------------------------------

COMMON = {
    "ignore_label": 255, "padding_label": 255, "split": 0, "power": 0.9, "momentum": 0.9,
    "warmup": False, "print_freq": 10, "resume": None, "evaluate": True, "start_epoch": 0,
    "fix_random_seed_val": True, "resized_val": True, "workers": 8, "manual_seed": 321,
    "seed_deterministic": False, "rotate_min": -10, "rotate_max": 10,
}  # fmt: skip
STAGE_TWO = COMMON | {
    "shot": 1, "batch_size_val": 1, "ori_resize": True, "fix_bn": True, "SubEpoch_val": True,
    "weight_decay": 0.01, "index_split": 0, "pre_weight": "base.pth", "save_freq": 10,
}  # fmt: skip
METHOD = {"layers": 50, "vgg": False, "aux_weight1": 1.0, "aux_weight2": 1.0, "low_fea": "layer2",
          "kshot_trans_dim": 2, "merge": "final", "merge_tau": 0.9}  # fmt: skip
DATA = {"base_data_root": "x", "train_list": "a.txt", "val_list": "b.txt", "classes": 2}
TEST = {"weight": None, "ann_type": "mask"}


def square(size: int, low: float, high: float) -> dict[str, object]:
    return {"train_h": size, "train_w": size, "scale_min": low, "scale_max": high}


THEIRS = {
    "pascal/pascal_split0_resnet50": {
        "Data": DATA | {"data_root": "data/VOCdevkit2012/VOC2012"},
        "Train": STAGE_TWO | square(473, 0.9, 1.1) | {
            "zoom_factor": 1, "val_size": 473, "data_set": "pascal", "use_split_coco": False,
            "batch_size": 8, "base_lr": "2e-4", "epochs": 300, "stop_interval": 100,
        },
        "Method": METHOD, "Test_Finetune": TEST,
    },
    "coco/coco_split0_resnet50": {
        "Data": DATA | {"data_root": "data/MSCOCO2014"},
        "Train": STAGE_TWO | square(633, 0.8, 1.25) | {
            "zoom_factor": 1, "val_size": 633, "data_set": "coco", "use_split_coco": True,
            "batch_size": 4, "base_lr": 0.00005, "epochs": 75, "stop_interval": 75,
            "SubEpoch_val": False,
        },
        "Method": METHOD, "Test_Finetune": TEST,
    },
}  # fmt: skip
BASE = {
    "Data": {"data_root": "data/MSCOCO2014", "train_list": "a", "val_list": "b", "classes": 61},
    "Train": COMMON | square(417, 0.5, 2.0) | {
        "val_size": 417, "data_set": "coco", "use_split_coco": True, "batch_size": 12,
        "base_lr": 2.5e-4, "epochs": 20, "stop_interval": 75, "index_split": -1,
        "weight_decay": 0.0001, "save_freq": 5, "batch_size_val": 4, "ori_resize": False,
        "zoom_factor": 8,
    },
    "Method": {"layers": 50, "vgg": False},
}  # fmt: skip


def run(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["config", *map(str, words)])
        try:
            main(command._run)
        except SystemExit as stop:
            return int(stop.code)
    return 0


def write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_page_is_written_from_the_table() -> None:
    page = PAGE.read_text()
    assert published_page(page) == page and len(TABLE) > 40
    for row in TABLE:
        assert {row.get("two", "Data.size"), row.get("one", "Data.size")} <= KEYS.keys()
        for ours in (row.get("two"), row.get("one")):
            assert ours is None or ours in row["here"] or ours == "Train.print_freq", row


@pytest.mark.parametrize("name", THEIRS)
def test_imported_config_is_ours_of_the_same_setting(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    theirs = write(tmp_path / "amnet.yaml", THEIRS[name])
    assert run(theirs, "--import", tmp_path / "ours.yaml") == 0
    told = capsys.readouterr()
    assert not told.err and "Method.name: amformer, as the file does not say" in told.out
    assert run(theirs, "--import", tmp_path / "bam.yaml", "Method.name=bam") == 0
    assert "Method.name" not in capsys.readouterr().out
    assert load_config(tmp_path / "bam.yaml").Method.name == "bam"
    imported, own = (
        flatten(to_dict(load_config(path)))
        for path in (tmp_path / "ours.yaml", ROOT / f"config/{name}.yaml")
    )
    changed = {key for key in own if own[key] != imported[key]}
    stage_one = {key for key in changed if key.startswith("Base.")}
    assert changed - stage_one <= {
        "Train.save_path", "Method.pre_weight", "Train.save_freq", "Eval.val_size", "Eval.episodes"
    }  # fmt: skip


def test_config_of_stage_one_sets_the_section_base(tmp_path: Path) -> None:
    theirs = write(tmp_path / "bam_base.yaml", BASE)
    assert run(theirs, "--import", tmp_path / "ours.yaml", "Method.pre_weight=b.pth") == 0
    imported = load_config(tmp_path / "ours.yaml")
    own = load_config(ROOT / "config/coco/coco_split0_resnet50.yaml")
    base, wanted = vars(imported.Base) | {"save_freq": 0}, vars(own.Base)
    assert {k: v for k, v in base.items() if k != "lr"} == {
        k: v for k, v in wanted.items() if k != "lr"
    }
    assert imported.Base.lr == pytest.approx(own.Base.lr, rel=1e-12)
    assert imported.Method.pre_weight == "b.pth" and imported.Data.data_set == "coco"


def test_each_key_of_a_foreign_config_is_listed_with_its_value_and_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = THEIRS["pascal/pascal_split0_resnet50"]
    content = content | {"Train": content["Train"] | {"my_loss": 3, "rotate_min": -5}}
    assert run(write(tmp_path / "theirs.yaml", content)) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for section, keys in content.items():
        for key, value in keys.items():
            found = [line for line in lines if line.startswith(f"{section}.{key} = {value!r}: ")]
            assert len(found) == (key != "my_loss"), (key, found)
    assert any(x.startswith("Train.base_lr = '2e-4': Train.lr") for x in lines)
    assert "warning: Train.my_loss: 3 is no key of AMNet, HDMNet or BAM; not impor" in printed.err
    assert "warning: Train.rotate_min: -5 is not -10; both directions get 10" in printed.err


def test_foreign_config_in_training_is_refused_with_the_command_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "theirs.yaml", BASE)
    assert run(path, "--get", "Train.lr") == 2
    assert f"python -m util.config {path} --import OURS.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_lr": "fast"}, "Train.base_lr wants a number, given 'fast'"),
        ({"base_lr": {"a": 1}}, "Train.base_lr wants a number, given {'a': 1}"),
        ({"epochs": 10**400}, "Train.epochs wants a number, given 1000"),
        ({"rotate_max": True, "rotate_min": None}, "Train.rotate_max wants a number, given True"),
        ({"data_set": ["pascal"]}, "Train.data_set wants a single value, given ['pascal']"),
        ({"train_h": [473, 1]}, "Train.train_h wants a single value, given [473, 1]"),
        ({"scale_min": {"low": 1}}, "Train.scale_min wants a single value, given {'low': 1}"),
        ({"resized_val": "no"}, "Train.resized_val wants true or false, given 'no'"),
        ({"SubEpoch_val": "False"}, "Train.SubEpoch_val wants true or false, given 'False'"),
        ({"use_split_coco": "False"}, "Train.use_split_coco wants true or false, given 'False'"),
        ({"index_split": "-1"}, "Train.index_split wants an integer, given '-1'"),
        ({"manual_seed": "abc"}, "Train.manual_seed wants an integer, given 'abc'"),
        (
            {"base_lr": "fast", "epochs": "many", "split": -1, "batch_size": 0},
            "4 mistakes: Train.base_lr wants a number, given 'fast'; Train.epochs wants a number,"
            " given 'many'; Train.batch_size wants an integer, at least 1, given 0; Data.split",
        ),
        ({"train_h": 470, "train_w": 470}, "Data.size must be 1 mod 8, given 470"),
        ({"split": 9}, "Data.split wants at most 3, given 9"),
        ({"data_set": "lvis"}, "Data.data_set wants"),
    ],
)
def test_value_that_cannot_be_used_is_refused_and_nothing_is_written(
    change: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = THEIRS["pascal/pascal_split0_resnet50"]
    theirs = write(tmp_path / "a.yaml", content | {"Train": content["Train"] | change})
    assert run(theirs, "--import", tmp_path / "b.yaml") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "b.yaml").exists()


@pytest.mark.parametrize("value", ["False", "0", [False], 1])
def test_network_is_not_guessed_from_a_text(
    value: object, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As a text, "False" would be true, which means another network."""
    method = {"Method": METHOD | {"vgg": value}}
    path = write(tmp_path / "a.yaml", THEIRS["pascal/pascal_split0_resnet50"] | method)
    for words in ([], ["--import", tmp_path / "b.yaml"]):
        assert run(path, *words) == 2
        assert "Method.vgg wants true or false, given" in capsys.readouterr().err
    assert not (tmp_path / "b.yaml").exists()


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("Train:\n  shot: 5\n", "Train", (3, 1)),
        ("Method: {layers: 50, vgg: false, layers: 101}\n", "Method.layers", (3, 3)),
        ("Data: {x: 1}\nMethod: {}\nData: {y: 2}\n", "Data", (5, 3)),
    ],
)
@pytest.mark.parametrize("words", [(), ("--import", "b.yaml")])
def test_section_or_key_that_stands_twice_is_refused(
    text: str, name: str, lines: tuple[int, int], words: tuple[str, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(
        f"Train: {STAGE_TWO}\nTest_Finetune: {{weight: x}}\n{text}".replace("None", "null")
    )
    assert run(path, *words) == 2
    second, first = lines
    assert f"{path}:{second}: {name} is in line {first}, too" in capsys.readouterr().err
    assert not (tmp_path / "b.yaml").exists()


def test_keys_outside_of_a_section_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    more = {"manual_seed": 7, "gpus": [0, 1], "note": "mine", "Empty": None}
    path = write(tmp_path / "a.yaml", BASE | more)
    for words in ([], ["--import", tmp_path / "b.yaml"]):
        assert run(path, *words) == 0
        told = capsys.readouterr().err
        for line in ("manual_seed: 7", "gpus: [0, 1]", "note: 'mine'"):
            assert f"warning: {line} stands outside of a section, such as Train; not impo" in told
        assert told.count("outside") == 3
    assert load_config(tmp_path / "b.yaml").Train.seed == 321


@pytest.mark.parametrize("name", ["b.json", "b", "b.yaml.txt", "b.py", ".yaml"])
def test_import_is_only_written_to_a_file_whose_name_says_yaml(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "a.yaml", BASE)
    assert run(path, "--import", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert "is written as YAML; name a file that ends in .yaml" in error
    assert [each.name for each in tmp_path.iterdir()] == ["a.yaml"]
    assert run(path, "--import", tmp_path / "c.yml") == 0 and load_config(tmp_path / "c.yml")


def test_override_without_import_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(write(tmp_path / "a.yaml", BASE), "Data.shot=5") == 2
    assert "Data.shot=5 would change nothing; add --import" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# é\nTrain: {}".encode("latin-1"), "is no UTF-8 text (byte 2 cannot be decoded)"),
        (gzip.compress(b"Train: {}"), "is a packed file (gzip), not text; unpack it first"),
        (b"PK\x03\x04abc", "is a packed file (zip)"),
    ],
)
def test_config_that_is_no_text_is_named_for_what_it_is(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert run(path, "--get", "Train.lr") == 2
    error = capsys.readouterr().err
    assert f"error: {path}: {words}" in error and error.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_config_of_an_editor_on_windows_is_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("Train: {save_path: exp/é}\r\n".encode(encoding))
    assert load_config(path).Train.save_path == "exp/é"


def test_import_keeps_a_config_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    theirs = write(tmp_path / "a.yaml", BASE)
    own = tmp_path / "b.yaml"
    own.write_text("Train: {lr: 1.0}")
    for target in (own, theirs):
        assert run(theirs, "--import", target) == 2
    assert own.read_text() == "Train: {lr: 1.0}" and is_published(
        yaml.safe_load(theirs.read_text())
    )


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda p: p.stem)
def test_no_config_of_ours_is_taken_for_a_published_one(path: Path) -> None:
    assert not is_published(yaml.safe_load(path.read_text()))
