"""Exported files: as good as their checkpoint, small, and refused when something is wrong."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.pictures import OBJECT, PICTURE, refused
from safetensors.torch import load, save

from model.amformer.object_mining import ObjectMining
from model.folding import ComposedChain, LinearChain
from util.checkpoint import export
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import Config
from util.folds import fold_of
from util.predict import Example, Predictor
from util.runtime.cli import main

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """util.checkpoint.export: words -> stderr; "" after success."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
        try:
            main(export.export)
        except SystemExit as stop:
            assert stop.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def exported(small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, with a threshold, as an exported file with scores."""
    folder = tmp_path_factory.mktemp("exported")
    state = read_checkpoint(small_run.checkpoint)
    write_checkpoint(folder / "best.pth", **state, presence_threshold=0.25)
    path = folder / "small.safetensors"
    path.write_bytes(export.exported(folder / "best.pth", {"mIoU": 12.5}))
    return path


def changed(path: Path, change: Callable[[dict, dict], None]) -> Path:
    """The file with other tensors or metadata."""
    content = path.read_bytes()
    weights, metadata = load(content), export.read_metadata(content, path)
    change(weights, metadata)
    other = path.with_name("changed.safetensors")
    other.write_bytes(save(weights, metadata))
    return other


@pytest.mark.parametrize("seed", [0, 1])
def test_composed_chains_compute_what_the_chains_do(seed: int) -> None:
    torch.manual_seed(seed)
    for last_norm, out in ((True, 64), (False, 2)):
        chain = LinearChain(64, out, last_norm=last_norm).double().eval()
        for norm in (m for m in chain if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(norm.weight)
        x = torch.randn(2, 64, 7, 9, dtype=torch.float64)
        with torch.no_grad():
            wanted = torch.nn.Sequential.forward(chain, x)
            assert torch.allclose(ComposedChain(chain)(x), wanted, rtol=1e-9, atol=1e-9)


def test_every_chain_of_the_generator_is_composed(small_run: SimpleNamespace) -> None:
    model = Predictor.from_checkpoint(small_run.checkpoint).model
    count = sum(isinstance(m, LinearChain) for m in ObjectMining().modules())
    model.compose_chains()
    kinds = [type(m) for m in model.object_mining.modules()]
    assert LinearChain not in kinds and kinds.count(ComposedChain) == count


def test_exported_file_predicts_as_its_checkpoint_and_is_small(
    small_run: SimpleNamespace, exported: Path
) -> None:
    ours, theirs = map(Predictor.from_checkpoint, (exported, small_run.checkpoint))
    assert ours.threshold == 0.25 and ours.cfg.Data.classes == theirs.cfg.Data.classes
    assert exported.stat().st_size < 12e6 < small_run.checkpoint.stat().st_size
    for predictor in (ours, theirs):
        predictor.add_class("object", Example(PICTURE, mask=OBJECT))
    source = small_run.episodes.source
    for name in small_run.episodes.sampler.fold.images[:4]:
        mine, other = (p.predict(source.image_path(name)) for p in (ours, theirs))
        assert np.abs(mine.scores - other.scores).max() < 5e-3  # half precision
        assert (mine.mask != other.mask).mean() < 0.01


def test_file_holds_config_and_scores_but_no_discriminator_and_no_packaged_backbone(
    exported: Path,
) -> None:
    content = exported.read_bytes()
    metadata = export.read_metadata(content, exported)
    assert json.loads(metadata["scores"]) == {"mIoU": 12.5}
    assert json.loads(metadata["config"])["Data"]["size"] == 65
    assert len(metadata["backbone"]) == 64
    names = load(content)
    assert not [n for n in names if n.startswith((export.BACKBONE, export.DISCRIMINATOR))]


def test_file_names_no_path_of_the_machine_that_wrote_it(
    small_run: SimpleNamespace, exported: Path
) -> None:
    text = export.read_metadata(exported.read_bytes(), exported)["config"]
    for path in (small_run.folder, small_run.cfg.Data.data_root):
        assert str(path) not in text
    config = json.loads(text)
    assert config["Data"]["data_root"] == Config().Data.data_root
    assert config["Train"]["save_path"] == Config().Train.save_path
    assert config["Train"]["lr"] == small_run.cfg.Train.lr


def test_file_of_a_mix_says_its_classes_and_sets_and_loads_without_their_folders(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    state = copy.deepcopy(read_checkpoint(small_run.checkpoint))
    fold = fold_of(small_run.cfg.Data)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(fold.names))
    novel = [fold.names[c - 1] for c in fold.novel]
    mix = [f"custom:{folder}", "coco:/secret/place"]
    state["config"]["Data"] |= {
        "data_set": "mix", "mix": mix, "novel": novel, "split": 0, "classes": list(fold.names)
    }  # fmt: skip
    state["config"]["Method"]["pretrained"] = "/secret/weights.pth"
    write_checkpoint(tmp_path / "best.pth", **state)
    path = tmp_path / "mix.safetensors"
    path.write_bytes(export.exported(tmp_path / "best.pth", {}))
    shutil.rmtree(folder)
    text = export.read_metadata(path.read_bytes(), path)["config"]
    assert str(tmp_path) not in text and "secret" not in text
    cfg = Predictor.from_checkpoint(path).cfg
    assert cfg.Data.mix == ("custom:mine", "coco:coco") and cfg.Method.pretrained == "weights.pth"
    assert cfg.Data.classes == fold.names and cfg.Data.novel == tuple(novel)
    assert fold_of(cfg.Data).base_names == fold.base_names


def test_backbone_that_was_trained_is_kept(small_run: SimpleNamespace, tmp_path: Path) -> None:
    state = copy.deepcopy(read_checkpoint(small_run.checkpoint))
    name = next(n for n in state["model"] if n.startswith(export.BACKBONE))
    state["model"][name] += 0.5
    write_checkpoint(tmp_path / "trained.pth", **state)
    path = tmp_path / "trained.safetensors"
    path.write_bytes(export.exported(tmp_path / "trained.pth", {}))
    assert export.read_metadata(path.read_bytes(), path)["backbone"] == ""
    read = Predictor.from_checkpoint(path).model.state_dict()[name]
    assert torch.allclose(read, state["model"][name], rtol=1e-3)


def test_command_writes_the_file_and_replaces_nothing(
    small_run: SimpleNamespace, tmp_path: Path, run: Run
) -> None:
    scores, out = tmp_path / "scores.json", tmp_path / "out.safetensors"
    scores.write_text('{"J": 50.5}')
    assert run(small_run.checkpoint, out, "--scores", scores, "Eval.support_zoom=1.5") == ""
    metadata = export.read_metadata(out.read_bytes(), out)
    assert metadata["scores"] == '{"J": 50.5}'
    assert json.loads(metadata["config"])["Eval"]["support_zoom"] == 1.5
    (tmp_path / "mine.safetensors").write_text("mine")
    error = run(small_run.checkpoint, tmp_path / "mine.safetensors")
    assert (
        "mine.safetensors exists" in error and (tmp_path / "mine.safetensors").read_text() == "mine"
    )


def test_wrong_words_of_the_command_are_one_line(
    small_run: SimpleNamespace, tmp_path: Path, run: Run
) -> None:
    assert "end its name like that" in run(small_run.checkpoint, tmp_path / "out.pth")
    (tmp_path / "list.json").write_text("[1]")
    for file, words in (("gone.json", "is no JSON file"), ("list.json", "no names with values")):
        error = run(small_run.checkpoint, tmp_path / "o.safetensors", "--scores", tmp_path / file)
        assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w, m: m.update(format="other"), ["is not a file of util.checkpoint.export"]),
        (lambda w, m: m.pop("scores"), ["is not a file of util.checkpoint.export"]),
        (lambda w, m: m.update(config="{"), ["its config cannot be read"]),
        (lambda w, m: m.update(config="[" * 100_000), ["its config cannot be read"]),
        (lambda w, m: m.update(presence_threshold='"high"'), ["presence_threshold is no number"]),
        (lambda w, m: m.update(backbone="0" * 64), ["another backbone than that of the installed"]),
        (lambda w, m: w.popitem(), ["another architecture"]),
        (lambda w, m: next(iter(w.values())).fill_(torch.nan), ["not finite"]),
    ],
)
def test_file_that_is_not_what_it_says_is_refused(
    exported: Path, change: Callable[[dict, dict], None], words: list[str]
) -> None:
    refused(words, Predictor.from_checkpoint, changed(exported, change))


def test_torn_file_is_refused(exported: Path) -> None:
    torn = exported.with_name("torn.safetensors")
    torn.write_bytes(exported.read_bytes()[:-100])
    refused(["torn"], Predictor.from_checkpoint, torn)


def test_unknown_weights_are_refused_with_those_that_there_are() -> None:
    refused(["weights 'painting': there are none"], Predictor.from_pretrained, "painting")
