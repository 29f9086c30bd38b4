"""Options that users of this family know: each does what its name says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import entries
from helpers.runs import CONFIG, make_data, same
from helpers.small import BASE_CLASSES, images

import test as test_entry
import train as train_entry
from model import AMFormer, build_model
from model.amformer import plain
from model.backbones import LITE0
from model.published import from_published, to_published
from util.checkpoint.file import read_checkpoint
from util.config import load_config
from util.data.batches import Batches
from util.data.dataset import open_episodes
from util.evaluate.evaluator import Evaluator
from util.runtime.distributed import Ranks
from util.train.optimizers import count_parameters, lr_schedule

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of two epochs of five iterations each."""
    made = make_data(tmp_path_factory.mktemp("data"))
    return [*made, "Train.max_iterations=0", "Train.epochs=2", "Data.workers=0"]


@pytest.fixture
def train(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Return a function that trains into a folder of this name, and returns the output."""

    def run(name: str, *more: str) -> str:
        folder = f"Train.save_path={tmp_path}/{name}"
        assert entries.call(train_entry.train, *words, folder, *more) == 0
        return capsys.readouterr().out

    return run


# --- training -------------------------------------------------------------------------------------


def test_warmup_raises_the_rate_from_a_tenth_to_all_of_it() -> None:
    rates = [lr_schedule(2.0, i, 1000, 0.9, warmup=50) for i in range(60)]
    assert rates[0] == pytest.approx(2 * (0.1 + 0.9 / 50))
    assert rates[48] == pytest.approx(2 * (0.1 + 0.9 * 49 / 50))
    assert rates[49:] == [lr_schedule(2.0, i, 1000, 0.9) for i in range(49, 60)]
    assert all(a < b for a, b in zip(rates[:48], rates[1:49], strict=True))


def test_warmup_lasts_half_an_epoch(
    words: list[str], train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    built = train_entry.build_trainer

    def watched(*given: object) -> object:
        seen.append(given[-1])
        return built(*given)

    monkeypatch.setattr(train_entry, "build_trainer", watched)
    for word in ("Train.warmup=true", "Train.warmup=false"):
        train("run", word, "Train.max_iterations=3", "Eval.val_episodes=1")
    assert seen == [2, 0]  # an epoch has five iterations


def test_middle_of_an_epoch_is_where_the_published_code_validates() -> None:
    batches = Batches(100, 4, 3, ALONE)  # 25 iterations an epoch
    middles = [done for done in range(1, 76) if batches.is_middle(done)]
    # In iterations counted from 0: i = round(25 / 2) = 12 of every epoch but the first.
    assert middles == [25 + 13, 50 + 13]


def test_half_epoch_validation_and_snapshots(train: Callable[..., str], tmp_path: Path) -> None:
    output = train("run", "Train.sub_epoch_val=true", "Train.save_freq=1", "Train.epochs=3")
    validated = [line.split(":")[0] for line in output.splitlines() if "  best " in line]
    assert validated == [f"iteration {done}" for done in (5, 8, 10, 13, 15)]
    kept = {
        path.name: read_checkpoint(path)["iteration"] for path in (tmp_path / "run").glob("*_*")
    }
    assert kept == {"epoch_1.pth": 5, "epoch_2.pth": 10, "epoch_3.pth": 15}
    train("other", "Train.sub_epoch_val=true", "Train.epochs=3",
          f"Train.resume={tmp_path}/run/epoch_2.pth")  # fmt: skip
    same(tmp_path / "other/last.pth", tmp_path / "run/last.pth")


def test_snapshot_of_the_same_folder_goes_on_with_its_run(
    train: Callable[..., str], tmp_path: Path
) -> None:
    options = "Train.save_freq=1", "Train.epochs=3"
    train("run", *options)
    last = tmp_path / "whole.pth"
    last.write_bytes((tmp_path / "run/last.pth").read_bytes())
    output = train("run", *options, f"Train.resume={tmp_path}/run/epoch_1.pth")
    assert "holds an earlier run" not in output
    assert read_checkpoint(tmp_path / "run/last.pth")["run"] == 1
    assert (tmp_path / "run/best.pth").exists()
    same(tmp_path / "run/last.pth", last)
    output = train("run", "Train.epochs=1")  # a new run in the folder
    assert "holds an earlier run, which this one replaces" in output
    assert not list((tmp_path / "run").glob("epoch_*.pth"))


@pytest.mark.parametrize(
    ("words_of_it", "said"),
    [
        (("Train.warmup=true", "Train.max_iterations=2"), "Train.warmup: half an epoch has 2"),
        (("Train.warmup=true", "Train.batch_size=5"), "Train.warmup: half an epoch has 0"),
        (("Train.sub_epoch_val=true", "Train.epochs=1"), "no epoch of this run has a middle"),
    ],
)
def test_option_that_would_do_nothing_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture,
    words_of_it: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    more = *words_of_it, f"Train.save_path={tmp_path}/run"
    assert entries.call(train_entry.train, *words, *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_run_without_validation_has_no_best_checkpoint(
    train: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "run", lambda *_, **__: pytest.fail("validated"))
    output = train("run", "Train.evaluate=false")
    assert "not validated; checkpoints in" in output
    assert (tmp_path / "run/last.pth").exists() and not (tmp_path / "run/best.pth").exists()


def test_log_shows_accuracy_and_the_epochs_scores(train: Callable[..., str]) -> None:
    output = train("run", "Train.print_freq=1")
    steps = [line for line in output.splitlines() if " ETA " in line]
    assert len(steps) == 10 and all("  accuracy 0." in line for line in steps)
    for epoch in (1, 2):
        [line] = [x for x in output.splitlines() if x.startswith(f"epoch {epoch}: training images")]
        assert all(name in line for name in ("mIoU", "mAcc", "allAcc"))
    assert "parameters: " in output


def test_parameters_are_counted() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1)
    total = sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    model.ensemble.gram_merge.requires_grad_(True)
    assert count_parameters(model) == f"parameters: {total:,}, of which 2 are trained"


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_gram_matrices_are_those_of_the_chosen_layer(layer: str) -> None:
    torch.manual_seed(0)
    model = AMFormer(LITE0, BASE_CLASSES, 1, low_fea=layer).eval().double()
    episode = [x.double() if x.is_floating_point() else x for x in images(2, 1)]
    with torch.no_grad():
        got, wanted = model(*episode), plain.predict(model, *episode)
        base = model.encoder.base
        f = plain.features(base, episode[0]).of_layer(layer)
        s = plain.features(base, episode[1][:, 0], episode[2][:, 0]).of_layer(layer)
    torch.testing.assert_close(got.psi, wanted.psi)
    torch.testing.assert_close(got.final, wanted.final)
    difference = plain.gram_matrix(f) - plain.gram_matrix(s)
    torch.testing.assert_close(got.psi, difference.flatten(1).norm(dim=1) / f.shape[1])


@pytest.mark.parametrize("hidden", [0, 2, 5])
def test_kshot_weights_of_any_width_survive_the_published_names(hidden: int) -> None:
    model = AMFormer("resnet50", BASE_CLASSES, 3, kshot_trans_dim=hidden)
    state = model.state_dict()
    theirs = to_published(state)
    names = {n: tuple(v.shape) for n, v in theirs.items() if n.startswith("kshot_rw")}
    wanted = {
        "kshot_rw.0.weight": (hidden, 3, 1, 1), "kshot_rw.0.bias": (hidden,),
        "kshot_rw.2.weight": (3, hidden, 1, 1), "kshot_rw.2.bias": (3,),
    }  # fmt: skip
    assert names == (wanted if hidden else {"kshot_rw.weight": (3, 3, 1, 1)})
    back = from_published(theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["Eval.val_size=65"],
        ["Eval.val_size=[49, 65]"],
        ["Data.size=[65, 33]"],
        ["Eval.resize=keep", "Eval.val_size=65"],
        ["Eval.ori_resize=false", "Eval.val_size=65"],
        ["Eval.ori_resize=false", "Eval.resize=keep"],
    ],
    ids=" ".join,
)
def test_scores_at_other_sizes_equal_those_of_one_episode_after_the_other(
    words: list[str], options: list[str]
) -> None:
    cfg = load_config(CONFIG, [*words, *options, "Eval.episodes=3", "Eval.seeds=[4]"])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    episodes, _ = open_episodes(cfg, "val", 4)
    evaluator = Evaluator(model, episodes, cfg, ALONE)
    seen = []
    scores = evaluator.run(evaluator.order(3, [4]), on_episode=seen.append)[4]
    assert np.isfinite(scores.loss) and len(seen) == 3
    losses = []
    for index in range(3):
        episode = episodes[index]
        assert episode.query.shape[1:] == cfg.sizes["Eval.val_size"]
        with torch.no_grad():
            found = model(episode.query[None], episode.support[None], episode.support_mask[None])
        [example] = [e for e in seen if e.plan.index == index]
        label = episodes.load_pair(episode.plan.query, None)[2 if cfg.Eval.ori_resize else 1]
        assert example.target.shape == label.shape
        final = found.final if cfg.Eval.ori_resize else found.scores
        if cfg.Eval.ori_resize:
            final = episodes.transform.to_image(final, tuple(label.shape))[None]
        assert final.shape[2:] == label.shape
        torch.testing.assert_close(example.resize(example.prediction.final[:1]), final[0])
        losses.append(torch.nn.functional.cross_entropy(
            final, example.target[None].long(), ignore_index=255
        ).item())  # fmt: skip
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_result_has_the_best_seed_the_object_part_and_each_base_class(
    words: list[str], train: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train("run", "Train.max_iterations=1", "Eval.val_episodes=1")
    more = f"Train.save_path={tmp_path}/run", "Eval.episodes=4", "Eval.seeds=[1, 2]"
    assert entries.call(test_entry.test, *words, *more) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    seeds = result["seeds"].values()
    best = max(seed["final"]["miou"] for seed in seeds)
    assert result["summary"]["final mIoU"]["best"] == best
    for seed in seeds:
        final, base = seed["final"], seed["base_classes"]
        assert 0 <= final["p_iou"] <= 100 and seed["loss"] > 0
        assert seed["base_miou"] == pytest.approx(np.mean(list(base.values())))
    assert "final pIoU" in result["summary"] and "meta FB-IoU" in result["summary"]
    logged = (tmp_path / "run/test.log").read_text()
    assert "   best" in output and all(line in logged for line in output.splitlines()[-30:-1])


def test_size_of_the_test_must_suit_the_backbone(words: list[str]) -> None:
    cfg = load_config(CONFIG, words)
    wrong = replace(cfg, Eval=replace(cfg.Eval, val_size=33), Method=replace(
        cfg.Method, backbone="vgg16"), Data=replace(cfg.Data, size=49))  # fmt: skip
    with pytest.raises(Exception, match="^Eval.val_size must be"):
        build_model(wrong)
