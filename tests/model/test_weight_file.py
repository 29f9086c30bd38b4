"""A file of weights that cannot be used is named for what it is, with a remedy that helps."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers.trials import lay
from safetensors.torch import save_file
from torch import nn

from model import AMFormer
from model.backbones import BUILDERS, LITE0, load_pretrained
from model.base_learner import BaseLearner
from model.errors import UserError
from model.published import base_to_published, published_name
from model.weight_file import read_weights
from util.checkpoint.file import load_state_dict_strictly
from util.predict import Predictor
from util.runtime.system import resident_peak


def refused(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and ";" in text, text
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty; copy or write it again"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\n  <?xml version='1.0'?><Error>AccessDenied", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 (Keras)"),
        (b"PK\x03\x04" + bytes(99), "torn, or not a PyTorch checkpoint"),
        (b"\x80\x02}q\x00.", "torn, or not a PyTorch checkpoint"),
        (b"any other text", "torn, or not a PyTorch checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_that_holds_no_weights_is_named(
    content: bytes, words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    if content == b"\x80\x02}q\x00.":
        content = b"no dictionary"
        path.write_bytes(b"\x80\x02" + bytes(20))
    assert words in refused(read_weights, path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"state_dict": {}, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        ({"state_dict": {}, "best": np.float64(76.1)}, "multiarray.scalar"),
        ({"model": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear"),
        ({"where": Path("x")}, "pathlib.PosixPath"),
    ],
    ids=["namespace", "number", "module", "path"],
)
def test_objects_that_are_no_weights_are_named_and_not_made(
    content: dict, name: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "model_best.pth.tar")
    told = refused(read_weights, tmp_path / "model_best.pth.tar")
    assert name in told and "save its weights alone: torch.save(content['state_dict']" in told


def test_folder_and_program_are_named(tmp_path: Path) -> None:
    assert "is a folder; name a file in it" in refused(read_weights, tmp_path)
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "model.pt"))
    assert "is a program of TorchScript" in refused(read_weights, tmp_path / "model.pt")


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of ResNets: timm's resnet50s (.pth, .safetensors) and torchvision's 50 and 101."""
    folder = tmp_path_factory.mktemp("resnets")
    state = timm.create_model("resnet50s").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "s.safetensors")
    torch.save({"state_dict": state, "args": argparse.Namespace()}, folder / "timm.pth.tar")
    torch.save(torchvision.models.resnet50().state_dict(), folder / "torchvision.pth")
    torch.save(timm.create_model("resnet101s").state_dict(), folder / "deeper.pth")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision.pth", "7x7 stem, as torchvision's; set Method.backbone=timm/resnet50"),
        ("timm.pth.tar", "holds a Python object besides weights (argparse.Namespace)"),
        ("deeper.pth", "of a deeper network; set Method.backbone"),
    ],
)
def test_imagenet_weights_that_do_not_fit_are_named(name: str, words: str, resnets: Path) -> None:
    told = refused(load_pretrained, BUILDERS["resnet50"](), "resnet50", str(resnets / name))
    assert told.startswith("Method.pretrained: ") and words in told


def test_safetensors_of_resnet50_load(resnets: Path) -> None:
    backbone = BUILDERS["resnet50"]()
    load_pretrained(backbone, "resnet50", str(resnets / "s.safetensors"))
    wanted = read_weights(resnets / "s.safetensors")
    assert torch.equal(
        backbone.state_dict()["layer4.2.conv3.weight"], wanted["layer4.2.conv3.weight"]
    )


def test_trial_19_weight_files_load_or_are_named(tmp_path: Path) -> None:
    folder = lay("19_weight_files", tmp_path / "trial")
    subprocess.run([sys.executable, folder / "make.py"], check=True)
    outcomes = {
        "resnet50-19c8e357.pth": "torchvision's",
        "timm_model_best.pth.tar": "argparse.Namespace",
        "numpy_scalar.pth.tar": "multiarray.scalar",
        **dict.fromkeys(("ok_module.pth.tar", "resnet50s.safetensors", "resnet50_v2.pth"), ""),
        "mmseg_resnet50_v1c.pth": "",
    }
    assert outcomes.keys() == {path.name for path in (folder / "weights").iterdir()}
    for name, words in outcomes.items():
        call = load_pretrained, BUILDERS["resnet50"](), "resnet50", str(folder / "weights" / name)
        assert words in refused(*call) if words else call[0](*call[1:]) is None


def test_checkpoint_of_another_kind_is_named_with_what_it_is_for(tmp_path: Path) -> None:
    with torch.device("meta"):
        system, base = AMFormer("resnet50", 15, 1), BaseLearner("resnet50", 15)
        imagenet = torchvision.models.resnet50()
    ours, bases = system.state_dict(), base_to_published(base.state_dict())
    published = {f"module.{published_name(name)}": value for name, value in ours.items()}
    for module, state, words in (
        (system, published, "published code; convert it: python -m util.checkpoint.convert x.pth"),
        (system, bases, "is a base learner, which Method.pre_weight takes"),
        (system, base.state_dict(), "is a base learner, which Method.pre_weight takes"),
        (system, imagenet.state_dict(), "ImageNet weights, which Method.pretrained takes"),
        (base, ours, "is a model of stage two; name the base learner"),
        (base, imagenet.state_dict(), "ImageNet weights, which Method.pretrained takes"),
    ):
        assert words in refused(load_state_dict_strictly, module, state, "x.pth")


def test_prediction_with_a_published_checkpoint_points_to_the_converter(
    tmp_path: Path, small_run: SimpleNamespace
) -> None:
    torch.save({"state_dict": {"module.transformer.x": torch.zeros(1)}}, tmp_path / "amnet.pth")
    told = refused(Predictor.from_checkpoint, tmp_path / "amnet.pth")
    assert "python -m util.checkpoint.convert" in told and "--config" in told
    assert LITE0 == small_run.cfg.Method.backbone


def nested(kind: str) -> object:
    value: list[object] = [1]
    if kind == "itself":
        value.append(value)
    for _ in range(40 if kind == "twice in each other" else 0):
        value = [value, value]
    return value


@pytest.mark.parametrize("kind", ["itself", "twice in each other"])
def test_few_bytes_that_stand_for_endless_values_are_refused_at_once(
    kind: str, tmp_path: Path
) -> None:
    torch.save({"model": nested(kind)}, tmp_path / "w.pth")
    assert "or one within itself" in refused(read_weights, tmp_path / "w.pth")


@pytest.mark.parametrize("megabytes", [1, 60])
def test_archive_whose_members_are_larger_than_it_is_refused_unread(
    megabytes: int, tmp_path: Path
) -> None:
    path, packed = tmp_path / "w.pth", tmp_path / "packed.pth"
    torch.save({"model": {"a": torch.zeros(250_000 * megabytes)}}, path)
    with ZipFile(path) as old, ZipFile(packed, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for name in old.namelist():
            archive.writestr(name, old.read(name))
    assert packed.stat().st_size < path.stat().st_size / 9
    before = resident_peak()
    assert "PyTorch packs no weights" in refused(read_weights, packed)
    assert resident_peak() - before < 30e6


@pytest.mark.parametrize("begin", [b"", b"PK\x03\x04", b"any text"])
def test_file_of_50_gigabytes_that_holds_no_weights_is_not_read(
    begin: bytes, tmp_path: Path
) -> None:
    with open(tmp_path / "w.pth", "wb") as file:
        file.write(begin)
        file.truncate(50_000_000_000)  # takes no room on the disk
    before = resident_peak()
    assert "torn, or not a PyTorch checkpoint" in refused(read_weights, tmp_path / "w.pth")
    assert resident_peak() - before < 30e6
