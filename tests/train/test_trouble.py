"""What breaks at hour 9: images, loader workers, numbers."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.entries import call
from helpers.processes import FORKSERVER, on_processes
from helpers.runs import CONFIG, at_work, make_data, same, start, wait_for
from torch import Tensor
from torch.utils.data import Dataset

import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config
from util.data.base_images import open_base_images
from util.data.batches import Batches
from util.data.dataset import open_episodes
from util.data.image_io import Unreadable
from util.data.loading import CHAIN, STRIDE, Skipping, loaded, skipped
from util.data.source import TRIES, Source
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped
from util.train import base_learner
from util.train.adversarial import AdversarialTrainer

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*make_data(tmp_path_factory.mktemp("data")), "Data.workers=0", "Train.val_period=9"]


# --- loading ------------------------------------------------------------------------------------


def test_another_sample_takes_the_place_of_one_that_cannot_be_read(
    capsys: pytest.CaptureFixture,
) -> None:
    broken = {5, 6, 6 + STRIDE}

    def make(index: int) -> int:
        if index in broken:
            raise Unreadable(f"no {index}")
        return index

    skipping = Skipping(True)
    assert [skipping(make, i) for i in (4, 5, 6)] == [4, 5 + STRIDE, 6 + 2 * STRIDE]
    assert skipping.skipped == 3
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: sample 5: no 5; skipped, 1 so far" and len(told) == 3
    broken |= {9 + STRIDE * place for place in range(CHAIN)}
    with pytest.raises(Unreadable, match=f"{CHAIN} in a row"):
        skipping(make, 9)
    with pytest.raises(Unreadable, match="no 5"):
        Skipping(False)(make, 5)


def test_a_pair_is_read_again_before_it_counts_as_broken(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tries = Source(load_config(CONFIG, words).Data.data_root, "pascal", "val"), []
    whole = Source.decode
    name = source.image_ids()[0]

    def stutters(self: Source, image_id: str) -> tuple:
        tries.append(image_id)
        if len(tries) < TRIES:
            raise Unreadable("a network drive")
        return whole(self, image_id)

    monkeypatch.setattr(Source, "decode", stutters)
    assert source.load(name)[0].ndim == 3 and tries == [name] * TRIES
    tries[:] = [""] * -TRIES
    monkeypatch.setattr(Source, "decode", lambda *_: stutters(source, tries.clear() or name))
    with pytest.raises(Unreadable, match="a network drive"):
        source.load(name)


class Deadly(Dataset):
    """The number of each sample; some end the worker process that asks for them."""

    def __init__(self, deadly: set[int], *, skip: bool, once: Path | None = None):
        self.deadly, self.once, self.skipping = deadly, once, Skipping(skip)

    def __getitem__(self, index: int) -> Tensor:
        if index in self.deadly and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)


def batches(dataset: Deadly) -> list[list[int]]:
    schedule = Batches(8, 2, 1, ALONE)
    schedule.start = 1
    made = loaded(dataset, schedule, SimpleNamespace(workers=2))
    return [batch.tolist() for batch in made]


def test_a_worker_that_dies_costs_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    assert batches(Deadly({4}, skip=False, once=tmp_path / "x")) == [[2, 3], [4, 5], [6, 7]]
    told = capsys.readouterr().err
    assert "warning: iteration 2: DataLoader worker (pid" in told and "other workers" in told
    assert signal.getsignal(signal.SIGCHLD) == before  # no step is broken into


def test_a_batch_that_ends_every_worker_stops_the_run() -> None:
    with pytest.raises(RunStopped, match="iteration 2: its batch has ended 2 workers"):
        batches(Deadly({4}, skip=False))


def test_or_another_batch_takes_its_place_and_counts() -> None:
    dataset = Deadly({4}, skip=True)
    assert batches(dataset) == [[2, 3], [4 + STRIDE, 5 + STRIDE], [6, 7]]
    assert dataset.skipping.skipped == 2


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture
def torn(words: list[str]):
    """An image that episode `first` >= 2 of 8 is the first to need is torn; given back whole."""
    cfg = load_config(CONFIG, words)
    episodes, _ = open_episodes(cfg, "train", cfg.Train.seed)
    first: dict[str, int] = {}
    for plan in map(episodes.sampler.plan, range(8)):
        for name in (plan.query, *plan.supports):
            first.setdefault(name, plan.index)
    name = max(first, key=first.get)
    assert first[name] >= 2
    path = episodes.source.image_path(name)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    yield SimpleNamespace(path=path, first=first[name], mend=lambda: path.write_bytes(content))
    path.write_bytes(content)


def test_a_torn_image_stops_the_run_which_loses_nothing(
    words: list[str], torn: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stopped, whole = (f"Train.save_path={tmp_path}/{name}" for name in ("stopped", "whole"))
    assert call(train_entry.train, *words, stopped) == 2
    error = capsys.readouterr().err
    assert (
        error == f"error: {torn.path}: cannot be read as an image; fetch or copy the file again\n"
    )
    assert read_checkpoint(tmp_path / "stopped/last.pth")["iteration"] == torn.first
    torn.mend()
    assert call(train_entry.train, *words, stopped, "Train.resume=auto") == 0
    assert call(train_entry.train, *words, whole) == 0
    same(tmp_path / "stopped/last.pth", tmp_path / "whole/last.pth")


def test_or_is_skipped_and_the_run_is_the_same_with_any_number_of_workers(
    words: list[str], torn: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for workers in (0, 2):
        more = f"Train.save_path={tmp_path}/{workers}", f"Data.workers={workers}"
        assert call(train_entry.train, *words, *more, "Data.broken=skip") == 0
        got = capsys.readouterr()
        assert "episodes that could not be read were skipped" in got.out
    same(tmp_path / "0/last.pth", tmp_path / "2/last.pth")


def test_the_store_and_stage_one_skip_it_too(
    words: list[str], torn: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = f"Train.save_path={tmp_path}/run", "Data.augment=false", "Train.feature_store=true"
    assert call(train_entry.train, *words, *more, "Data.broken=skip") == 0
    assert str(torn.path) in capsys.readouterr().err
    base = (
        "Base.epochs=1",
        "Base.batch_size=4",
        f"Method.pre_weight={tmp_path}/base.pth",
        "Base.augment=true",
    )
    assert call(base_entry.train_base, *words, *base, "Data.broken=skip") == 0
    got = capsys.readouterr()
    assert str(torn.path) in got.err and (tmp_path / "base.pth").exists()
    assert "images that could not be read were skipped" in got.out


def count_skipped(ranks: Ranks) -> int:
    return skipped(SimpleNamespace(skipping=SimpleNamespace(skipped=ranks.rank + 1)), ranks)


def test_what_all_ranks_skip_is_counted(tmp_path: Path) -> None:
    assert on_processes(2, count_skipped, tmp_path) == [3, 3]


# --- stage one ----------------------------------------------------------------------------------


@pytest.fixture
def stage_one(words: list[str], tmp_path: Path) -> Callable[..., int]:
    """Runs it on four batches of two, to a named file; its status."""
    more = "Base.max_iterations=4", "Base.augment=true", "Base.batch_size=2"

    def run(name: str, *options: str) -> int:
        path = f"Method.pre_weight={tmp_path}/{name}.pth"
        return call(base_entry.train_base, *words, *more, path, *options)

    return run


def goes_on(stage_one: Callable[..., int], folder: Path) -> None:
    """Holds a stage one that a fault ended after two iterations to lose nothing."""
    assert read_checkpoint(folder / "base.unfinished.pth")["iteration"] == 2
    assert not (folder / "base.pth").exists()
    assert stage_one("base", "Train.resume=auto") == 0
    assert stage_one("whole") == 0
    same(folder / "base.pth", folder / "whole.pth")


def test_a_torn_image_costs_stage_one_nothing(
    words: list[str], stage_one: Callable[..., int], tmp_path: Path
) -> None:
    cfg = load_config(CONFIG, words)
    images, _ = open_base_images(
        cfg, "train", base_learner.transform(cfg, train=True), cfg.Base.seed
    )
    path = images.source.image_path(images.name(4))
    content = path.read_bytes()
    path.write_bytes(content[:100])
    try:
        assert stage_one("base") == 2
    finally:
        path.write_bytes(content)
    goes_on(stage_one, tmp_path)


def test_nor_does_a_loss_that_is_not_finite(
    stage_one: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its forward pass has done to statistics and random states is undone."""
    seen: list[Tensor] = []
    whole = base_learner.loss_of

    def poisoned(*given: object) -> Tensor:
        seen.append(whole(*given))
        return seen[-1] * (torch.nan if len(seen) == 3 else 1)

    monkeypatch.setattr(base_learner, "loss_of", poisoned)
    assert stage_one("base") == 1
    goes_on(stage_one, tmp_path)


# --- numbers ------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Iteration 4's gradients count as not finite; what its losses were."""
    seen: list[dict[str, Tensor]] = []
    step, norm = AdversarialTrainer.step, torch.nn.utils.get_total_norm

    def watched(game: AdversarialTrainer, batch: object, iteration: int, in_epoch: int) -> object:
        bad = iteration == 4 and not seen
        replaced = (lambda _: torch.tensor(torch.nan)) if bad else norm
        monkeypatch.setattr(torch.nn.utils, "get_total_norm", replaced)
        try:
            return step(game, batch, iteration, in_epoch)
        except RunStopped as error:
            seen.append(error.losses)
            raise

    monkeypatch.setattr(AdversarialTrainer, "step", watched)
    return seen


def test_a_step_that_is_not_finite_is_kept_and_repeats_to_the_bit(
    words: list[str], tmp_path: Path, poisoned: list, capsys: pytest.CaptureFixture
) -> None:
    run = f"Train.save_path={tmp_path}"
    assert call(train_entry.train, *words, run) == 1
    error, path = capsys.readouterr().err, tmp_path / "nonfinite_4_0.pth"
    assert error.startswith("stopped: iteration 4: ") and error.count("\n") == 1
    assert error.endswith(f"python train.py --replay {path}\n")
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == 4

    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert call(train_entry.train, "--replay", str(path), config=False) == 0
    said = capsys.readouterr().out
    for name, value in poisoned[0].items():
        assert f"  {name} {value.item():.9g}\n" in said, said
    assert "first module whose output is not finite: none" in said
    assert "weights: finite" in said and "every gradient is finite here" in said
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}

    assert call(train_entry.train, *words, run, "Train.resume=auto") == 0  # the step went well
    capsys.readouterr()
    assert call(train_entry.train, "--replay", str(path), "Train.lr=1", config=False) == 2
    assert "another config: Train.lr" in capsys.readouterr().err
    assert call(train_entry.train, "--replay", str(tmp_path / "last.pth"), config=False) == 2
    assert "holds no step" in capsys.readouterr().err


@pytest.fixture
def nan(words: list[str], tmp_path: Path) -> str:
    """Names a base learner in which one bias is NaN."""
    [base] = [word.partition("=")[2] for word in words if word.startswith("Method.pre_weight")]
    state = read_checkpoint(base)
    state["state_dict"]["cls.4.bias"][2] = float("nan")
    write_checkpoint(tmp_path / "nan.pth", **state)
    return f"Method.pre_weight={tmp_path}/nan.pth"


def test_the_module_that_is_not_finite_first_is_named(
    words: list[str], nan: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call(train_entry.train, *words, nan, f"Train.save_path={tmp_path}/run") == 1
    path = tmp_path / "run/nonfinite_0_0.pth"
    assert str(path) in capsys.readouterr().err
    assert call(train_entry.train, "--replay", str(path), config=False) == 1
    got = capsys.readouterr()
    assert "weights: 1 not finite, encoder.base.classifier.bias first" in got.out
    assert "first module whose output is not finite: encoder.base.classifier (finite" in got.out
    assert "  main nan\n" in got.out and got.err.startswith(
        "stopped: not finite again: iteration 0"
    )


# --- ends of runs with workers ------------------------------------------------------------------


def ended(process: BaseProcess, log: Path, seconds: float = 120) -> tuple[int, str]:
    """The status of a run that must end by itself, its workers with it, and its one last line."""
    process.join(seconds)
    left = at_work(process)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    said = log.read_text()
    assert not left, said
    [line] = re.findall(r"^(?:error|stopped): .*", said, re.M)
    assert "Traceback" not in said and said.endswith(line + "\n")
    return process.exitcode, line


def test_a_torn_image_ends_a_run_and_its_workers(
    words: list[str], torn: SimpleNamespace, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start([*words, f"Train.save_path={tmp_path}/run", "Data.workers=2"], log)
    status, line = ended(process, log)
    assert status == 2 and str(torn.path) in line
    assert read_checkpoint(tmp_path / "run/last.pth")["iteration"] == torn.first


def test_a_step_that_is_not_finite_ends_a_run_and_its_workers(
    words: list[str], nan: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start([*words, nan, f"Train.save_path={tmp_path}/run", "Data.workers=2"], log)
    status, line = ended(process, log)
    assert status == 1 and line.endswith("nonfinite_0_0.pth")


class Slow(Dataset):
    """Samples that take minutes; each leaves a file in a folder when it is begun."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, index: int) -> Tensor:
        (self.folder / str(index)).touch()
        time.sleep(300)
        return torch.tensor(index)


def read_slowly(folder: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    next(loaded(Slow(folder), Batches(8, 2, 1, ALONE), SimpleNamespace(workers=2)))


def test_workers_end_with_a_run_that_is_killed_also_amid_a_sample(tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=read_slowly, args=(tmp_path,))
    process.start()
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, process)
    assert len(at_work(process)) == 3
    process.kill()
    end = time.monotonic() + 20
    while left := at_work(process):
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(left)
        time.sleep(0.05)
