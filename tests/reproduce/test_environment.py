"""The record of the environment, and which config keys can change a number."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pictures import a_fold

from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import Config, keys_with, to_dict
from util.reproduce import environment
from util.reproduce.compare import config_hash, numeric_keys, setting_differences
from util.runtime.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def changed(section: str, **keys: object) -> Config:
    cfg = Config()
    return replace(cfg, **{section: replace(getattr(cfg, section), **keys)})


def hash_of(cfg: Config) -> str:
    return config_hash(to_dict(cfg))


def test_record_is_complete_and_can_be_written_to_json_and_checkpoints(tmp_path: Path) -> None:
    made = environment.record_environment(Config(), ALONE, {"val": a_fold(c1=3)})
    assert set(made) == {"config", "lists", "code", "packages", "seeds", "machine"}
    assert made["packages"]["torch"] == torch.__version__
    assert all(made["packages"].values())
    assert made["seeds"] == {"train": 321, "base": 321, "val": 321, "test": list(range(321, 331))}
    assert made["machine"]["gpu"] is None and made["machine"]["ranks"] == 1
    assert made["machine"]["threads"] == torch.get_num_threads() and made["machine"]["cpu"]
    assert json.loads(json.dumps(made)) == made
    write_checkpoint(tmp_path / "x.pth", environment=made)
    assert read_checkpoint(tmp_path / "x.pth")["environment"] == made


def test_record_names_the_commit_and_whether_a_tracked_file_differs_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._code() == {"commit": None, "dirty": None}

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-qm", "a")
    (tmp_path / "untracked").write_text("files of a run do not count\n")
    assert environment._code() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.py").write_text("2\n")
    assert environment._code()["dirty"] is True


@pytest.mark.parametrize(
    ("section", "keys"), [("Data", {"size": 65}), ("Eval", {"seeds": (1,)}), ("Train", {"lr": 1.0})]
)
def test_key_that_can_change_a_number_changes_the_hash(section: str, keys: dict) -> None:
    assert hash_of(changed(section, **keys)) != hash_of(Config())


def test_neutral_keys_and_paths_to_inputs_do_not_change_the_hash() -> None:
    assert hash_of(changed("Data", data_root="/x", workers=0)) == hash_of(Config())
    assert hash_of(changed("Train", save_path="/x")) == hash_of(Config())
    neutral, inputs = keys_with("neutral"), keys_with("names_input")
    paths = {"Data.data_root", "Data.list_dir", "Method.pre_weight", "Eval.weight"}
    assert inputs == paths | {"Data.mix"}
    assert {"Train.resume", "Data.cache", "Eval.visualize"} <= neutral and not neutral & inputs
    assert not numeric_keys(to_dict(Config())).keys() & (neutral | inputs)


def test_kinds_names_and_order_of_a_mix_change_the_hash_but_not_its_folders() -> None:
    def of(*mix: str) -> str:
        return hash_of(changed("Data", data_set="mix", mix=mix))

    own = of("coco:a", "custom:b/mine")
    assert own == of("coco:/x/y", "custom:/c/mine/")
    others = [
        of("custom:b/mine", "coco:a"), of("coco:a"), of("pascal:a", "custom:b/mine"),
        of("coco:a", "custom:b/yours"),
    ]  # fmt: skip
    assert len({own, *others}) == 5


def test_differences_to_a_resumed_run_leave_out_neutral_keys_but_not_paths_to_inputs() -> None:
    then = {"config": to_dict(Config()), "versions": {"torch": "1"}, "iteration": 3}
    later = replace(
        changed("Data", data_root="/x", workers=0, size=65),
        Train=changed("Train", resume="auto").Train,
    )
    now = {"config": to_dict(later), "versions": {"torch": "2"}}
    root = Config().Data.data_root
    assert setting_differences(then, now) == [
        f"config.Data.data_root {root} -> /x",
        "config.Data.size 473 -> 65",
        "versions.torch 1 -> 2",
    ]


def test_crc_of_a_list_changes_with_its_images_and_supports() -> None:
    fold = a_fold(c1=3, c2=2)
    crc = environment.list_crc(fold)
    assert crc == environment.list_crc(a_fold(c1=3, c2=2))
    others = [
        replace(fold, images=fold.images[::-1]),
        replace(fold, images=fold.images[1:]),
        replace(fold, by_class=fold.by_class | {1: fold.by_class[1][1:]}),
        replace(fold, by_class={2: fold.by_class[1], 1: fold.by_class[2]}),
    ]
    assert len({crc, *map(environment.list_crc, others)}) == 5
