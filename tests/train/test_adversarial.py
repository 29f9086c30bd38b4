"""The rules of the game: whose turn it is, at which rate and weight, and what a step leaves."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.small import BASE_CLASSES, Recorded, config, encoded
from torch import Tensor, nn

from model import AMFormer
from model.backbones import LITE0
from util.runtime.distributed import Ranks
from util.train.adversarial import AdversarialTrainer, NonFiniteStep, choose_parts
from util.train.optimizers import lr_schedule

TOTAL = 40


def play(**train: object) -> AdversarialTrainer:
    torch.manual_seed(0)
    cfg = config()
    cfg = replace(cfg, Train=replace(cfg.Train, lr=2e-4, **train))
    model = AMFormer(LITE0, BASE_CLASSES, 1).train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return AdversarialTrainer(model, cfg, TOTAL, Ranks(0, 1, torch.device("cpu")))


@pytest.fixture(scope="module")
def game() -> AdversarialTrainer:
    return play()


def turns(game: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch, iterations: range) -> list:
    """The weight of each G step, the choice of part maps of each D step."""
    taken: list = []
    monkeypatch.setattr(
        game, "generator_step", lambda _, *, weight, iteration: taken.append(weight)
    )
    monkeypatch.setattr(
        game, "discriminator_step", lambda _, chosen, *, iteration: taken.append(chosen)
    )
    for i in iterations:
        game.step(None, i, i)
    return taken


def test_g_and_d_take_turns_and_every_fifth_iteration_weighs_if_it_is_gs(
    game: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = turns(game, monkeypatch, range(20))
    weights = [x if isinstance(x, float) else "D" for x in taken]
    period = [1e-9, "D", 1e-9, "D", 0.1, "D", 1e-9, "D", 1e-9, "D"]
    assert weights == period * 2
    chosen = {i: x for i, x in enumerate(taken) if i % 2}
    seed = game.cfg.seed
    assert all(torch.equal(x, choose_parts(seed, i)) for i, x in chosen.items())


def test_without_the_game_every_iteration_is_gs(
    game: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(game, "cfg", replace(game.cfg, adversarial=False))
    assert turns(game, monkeypatch, range(4)) == [0.0] * 4


def test_the_rate_of_both_players_follows_the_published_schedule(
    game: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in (0, 1, 20, TOTAL - 1):
        turns(game, monkeypatch, range(i, i + 1))
        rate = 2e-4 * (1 - (i + 1) / TOTAL) ** 0.9
        assert game.rate == pytest.approx(rate, rel=1e-12)
        found = {g["lr"] for o in (game.optimizer_g, game.optimizer_d) for g in o.param_groups}
        assert sorted(found) == pytest.approx(sorted({rate, 10 * rate}), rel=1e-12)
        assert game.rates() == pytest.approx({"lr_x1": rate, "lr_x10": 10 * rate}, rel=1e-12)
    assert lr_schedule(1.0, TOTAL - 1, TOTAL, 0.9) == 0.0


def test_the_sum_that_each_player_descends(
    game: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what comes out of a step holds no graph, and D's step builds none through G."""
    batch = encoded(game.model, 1)
    before = {name: value.clone() for name, value in game.model.state_dict().items()}
    g = game.generator_step(batch, weight=0.3)
    terms = g
    total = terms["main"] + terms["aux"] + terms["distillation"] + 0.3 * terms["adversarial_g"]
    torch.testing.assert_close(terms["loss_g"], total)
    game.model.load_state_dict(before)
    monkeypatch.setattr(game, "predict", predicted := Recorded(game.predict))
    d = game.discriminator_step(batch, choose_parts(0, 1))
    total = d["adversarial_d"] + 0.01 * d["diversity"]
    torch.testing.assert_close(d["loss_d"], total)
    assert not predicted.results[0].features[0].requires_grad
    for result in (g, d):
        assert not any(value.requires_grad for value in result.values())


def test_segmentation_losses_are_means_over_the_labelled_pixels(game: AdversarialTrainer) -> None:
    batch = encoded(game.model, 1)
    batch.query_mask[0, :20], batch.query_base_mask[0, :9] = 255, 255
    with torch.no_grad():
        prediction = game.predict(batch)
        got = game.segmentation_losses(prediction, batch, game.pixels(batch))
        got = {n: x.float() for n, x in got.items()}

    def entropy(scores: Tensor, target: Tensor) -> Tensor:
        size = tuple(target.shape[-2:])
        large = F.interpolate(scores, size, mode="bilinear", align_corners=True)
        return F.cross_entropy(large, target, ignore_index=255)

    mask, levels = batch.query_mask, prediction.logits
    torch.testing.assert_close(got["main"], entropy(prediction.final, mask))
    aux = sum(entropy(z, mask) for z in levels) / len(levels)
    torch.testing.assert_close(got["aux"], aux)
    base = entropy(prediction.base_logits, batch.query_base_mask)
    torch.testing.assert_close(got["base"], base)


def poisoned(change: Callable[[AdversarialTrainer], None]) -> str:
    """The message of a step of G, which must have moved nothing."""
    game = play()
    batch = encoded(game.model, 1)
    change(game)
    before = {name: value.clone() for name, value in game.model.state_dict().items()}
    with pytest.raises(NonFiniteStep) as caught:
        game.step(batch, 6, 6)
    after = game.model.state_dict()
    assert all(
        torch.equal(value.nan_to_num(7.0), after[n].nan_to_num(7.0)) for n, value in before.items()
    )
    return str(caught.value)


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    def change(game: AdversarialTrainer) -> None:
        with torch.no_grad():
            game.model.object_mining.heads[2][-1].bias[0] = torch.inf

    assert poisoned(change).startswith("iteration 6: the loss is nan")


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    def change(game: AdversarialTrainer) -> None:
        weight = game.model.clue.down_query[0].weight
        weight.register_hook(lambda gradient: gradient * torch.nan)

    told = "iteration 6: the gradient of clue.down_query.0.weight is not finite, episodes: "
    assert poisoned(change).startswith(told)


def test_the_state_of_the_players_comes_back(game: AdversarialTrainer) -> None:
    game.generator_step(encoded(game.model, 1), weight=0.1)
    other = play()
    other.load_state_dict(game.state_dict())
    for name in ("optimizer_g", "optimizer_d"):
        mine, theirs = (getattr(g, name).state_dict() for g in (game, other))
        assert mine["state"].keys() == theirs["state"].keys()
        for key, values in mine["state"].items():
            assert all(torch.equal(values[n], theirs["state"][key][n]) for n in values)
    assert game.optimizer_g.state
