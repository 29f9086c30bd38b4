"""Randomly malformed configs, command lines, checkpoints: one line, status 2, no file changed."""

import io
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.entries import call
from helpers.runs import CONFIG, make_data

import test as test_entry
import train as train_entry
from model import build_model
from model.backbones import pixel_statistics
from util.checkpoint import load as weights
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config, to_dict
from util.config.arguments import arguments
from util.data.dataset import open_episodes
from util.runtime.errors import UserError

CONFIGS, COMMANDS, WEIGHTS, RESUMED = 40, 30, 20, 15
JUNK = ["", "~", "[", "]", "{", ": :", "- -", "\t", "\x00", "!!python/object/apply:os.getcwd []",
        "&a [*a]", "1e999", ".nan", "-1", "'", '"', "é\u2028", "true", "[[[[", "{[1]: 2}", "<<: 3",
        "*x", "2001-13-45", "0x", "%", "@", "!!binary x", "? ", "--- 1", "9" * 400]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [*make_data(folder), f"Train.save_path={folder}/run", "Data.workers=0"]


@pytest.fixture(scope="module")
def folder(words: list[str]) -> Path:
    """The folder of everything that a run may write; it holds a checkpoint of one iteration."""
    assert call(train_entry.train, *words, "Train.max_iterations=1", "Eval.val_episodes=1") == 0
    return Path(words[-2].partition("=")[2]).parent


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """Return a check: a call prints one line, exits with status 2 and changes no file."""

    def check(entry: Callable, *words: str, config: bool = True, what: object = "") -> None:
        before = files(folder)
        capsys.readouterr()
        status = call(entry, *words, config=config)
        error = capsys.readouterr().err
        assert status == 2, what
        assert error.startswith("error: ") and error.count("\n") == 1, (error, what)
        assert len(error) < 2000 and "Traceback" not in error, what
        assert files(folder) == before, what

    return check


def malformed(attempt: Callable[[], object]) -> bool:
    """Return whether an attempt is refused; any error but a UserError is a fault and propagates."""
    try:
        attempt()
    except UserError:
        return True
    return False


def spoiled(text: str, rng: random.Random) -> str:
    """Return a config with one to three faults."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:  # replace a value
            lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(JUNK)}"
        elif kind == 1:
            lines.insert(at, rng.choice(JUNK))
        elif kind == 2:  # insert or replace a letter
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + chr(rng.randrange(1, 300)) + lines[at][place + 1 :]
        elif kind == 3:
            del lines[at:]
            lines.append(rng.choice(JUNK))
        elif kind == 4:  # change the indentation
            lines[at] = " " * rng.randrange(6) + lines[at].strip()
        else:
            lines[at] = lines[at].replace("_", "", 1) + rng.choice(["", "x", ": 1"])
    return "\n".join(lines)


def test_malformed_config_is_one_line_and_status_2(
    words: list[str], folder: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    text = yaml.safe_dump(to_dict(load_config(CONFIG, words)))
    rng, path, count = random.Random(1), tmp_path / "x.yaml", 0
    while count < CONFIGS:
        content = spoiled(text, rng).encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = rng.randbytes(rng.randrange(200))
        path.write_bytes(content)
        if malformed(lambda: load_config(path)):
            entry = rng.choice((train_entry.train, test_entry.test))
            refused(entry, "--config", str(path), "--gpus", "0", config=False, what=content)
            count += 1


def command(rng: random.Random) -> list[str]:
    keys = [f"{s}.{k}" for s, keys in to_dict(load_config(CONFIG)).items() for k in keys]
    drawn = [
        lambda: rng.choice(["--config", "--gpus", "--replay", "--resume", "--", "-1", "--confg=x"]),
        lambda: rng.choice([str(CONFIG), "/nowhere.yaml", "/", "0", "many", "1e9"]),
        lambda: f"{rng.choice(keys)}={rng.choice(JUNK)}".replace("\x00", ""),
        lambda: f"{rng.choice(keys)}x={rng.randrange(9)}",
        lambda: rng.choice(JUNK).replace("\x00", "") or "=",
    ]
    words = ["--config", str(CONFIG), "--gpus", rng.choice(["0", "0", "0", "77", "-1"])]
    words = words if rng.random() < 0.7 else []
    return words + [rng.choice(drawn)() for _ in range(rng.randint(1, 4))]


def test_malformed_command_line_is_one_line_and_status_2(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, count = random.Random(2), 0
    while count < COMMANDS:
        words = command(rng)
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        if malformed(lambda: arguments("", {"--replay": "Train.replay"})):
            refused(train_entry.train, *words, config=False, what=words)
            count += 1


def zipped(content: bytes, rng: random.Random) -> bytes:
    """Return a zip of the same members, one of them missing or with random bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        victim, drop = rng.choice(names), rng.random() < 0.5
        for name in names:
            if name != victim or not drop:
                data = old.read(name)
                new.writestr(name, rng.randbytes(len(data)) if name == victim else data)
    return made.getvalue()


def broken_files(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield damaged variants of a checkpoint file."""
    while True:
        kind = rng.randrange(5)
        at = rng.randrange(len(content))
        if kind == 0:
            yield content[:at]
        elif kind == 1:  # flip a bit
            yield content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        elif kind == 2:
            yield content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :]
        elif kind == 3:
            yield rng.randbytes(rng.randrange(3000))
        else:
            yield zipped(content, rng)


@pytest.fixture(scope="module")
def made(words: list[str]) -> SimpleNamespace:
    """Model and data, made once: these tests only look at what is read from the file."""
    cfg = load_config(CONFIG, words)
    statistics = pixel_statistics(cfg.Method.backbone)
    opened = {subset: open_episodes(cfg, subset, 1, *statistics) for subset in ("train", "val")}
    return SimpleNamespace(model=build_model(cfg), opened=opened)


@pytest.fixture
def quick(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_entry, "open_episodes", lambda _, subset, *__: made.opened[subset])
    for module in (train_entry, weights):
        monkeypatch.setattr(module, "build_model", lambda _: made.model)


@pytest.mark.usefixtures("quick")
def test_broken_file_as_checkpoint_is_one_line_and_status_2(
    words: list[str], folder: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    content = (folder / "run/last.pth").read_bytes()
    path, count = tmp_path / "x.pth", 0
    for number, broken in enumerate(broken_files(content, random.Random(3))):
        path.write_bytes(broken)
        if malformed(lambda: read_checkpoint(path)):  # a bit may flip between members
            entry, key = (
                (test_entry.test, "Eval.weight"),
                (train_entry.train, "Train.resume"),
                (train_entry.train, "Method.pre_weight"),
                (train_entry.train, "Train.replay"),
            )[number % 4]
            refused(entry, *words, f"{key}={path}", what=number)
            count += 1
            if count == WEIGHTS:
                break


@pytest.mark.parametrize("weights", [None, [1], "text", {"a": 3}, {3: "a"}, torch.zeros(2)])
def test_weights_of_another_shape_are_refused_in_one_line(
    words: list[str], tmp_path: Path, refused: Callable[..., None], quick: None, weights: object
) -> None:
    for entry, key, name in (
        (test_entry.test, "Eval.weight", "model"),
        (train_entry.train, "Method.pre_weight", "state_dict"),
    ):
        write_checkpoint(tmp_path / "x.pth", **{name: weights})
        refused(entry, *words, f"{key}={tmp_path}/x.pth")


def misshapen(state: dict, rng: random.Random) -> dict:
    """Return a readable checkpoint with one or two wrong entries."""
    state = dict(state)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice([n for n in state if n not in ("best", "stale", "launch", "versions",
                                                         "validated", "config", "images", "ranks",
                                                         "scalers", "run")])  # fmt: skip
        if rng.random() < 0.4 and name != "areas":  # older checkpoints have no areas
            del state[name]
        else:
            state[name] = rng.choice([None, -3, "text", [], {}, torch.zeros(2), {"a": [1]}])
    return state


@pytest.mark.usefixtures("quick")
def test_checkpoint_with_wrong_content_is_refused_in_one_line(
    words: list[str], folder: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    state, rng, path = (
        read_checkpoint(folder / "run/last.pth"),
        random.Random(4),
        tmp_path / "x.pth",
    )
    for _ in range(RESUMED):
        made = misshapen(state, rng)
        write_checkpoint(path, **made)
        what = {
            name: type(made.get(name)).__name__
            for name in state
            if made.get(name) is not state[name]
        }
        refused(
            train_entry.train, *words, "Train.max_iterations=8", f"Train.resume={path}", what=what
        )
