"""Adversarial training: which network steps when, at which rate and weight, and what changes."""

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
from util.train.adversarial import AdversarialTrainer, choose_parts
from util.train.optimizers import lr_schedule
from util.train.trainer import NonFiniteStep

TOTAL = 40


def build_trainer(**train: object) -> AdversarialTrainer:
    torch.manual_seed(0)
    cfg = config()
    cfg = replace(cfg, Train=replace(cfg.Train, lr=2e-4, **train))
    model = AMFormer(LITE0, BASE_CLASSES, 1).train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return AdversarialTrainer(model, cfg, TOTAL, Ranks(0, 1, torch.device("cpu")))


@pytest.fixture(scope="module")
def trainer() -> AdversarialTrainer:
    return build_trainer()


def turns(trainer: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch, iterations: range) -> list:
    """Return the adversarial weight of each step of G, the part maps of each step of D."""
    taken: list = []
    monkeypatch.setattr(
        trainer, "generator_step", lambda _, *, weight, iteration: taken.append(weight)
    )
    monkeypatch.setattr(
        trainer, "discriminator_step", lambda _, chosen, *, iteration: taken.append(chosen)
    )
    for i in iterations:
        trainer.step(None, i, i)
    return taken


def test_g_and_d_alternate_and_one_g_step_per_period_has_the_full_weight(
    trainer: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = turns(trainer, monkeypatch, range(20))
    weights = [x if isinstance(x, float) else "D" for x in taken]
    period = [1e-9, "D", 1e-9, "D", 0.1, "D", 1e-9, "D", 1e-9, "D"]
    assert weights == period * 2
    chosen = {i: x for i, x in enumerate(taken) if i % 2}
    seed = trainer.cfg.seed
    assert all(torch.equal(x, choose_parts(seed, i)) for i, x in chosen.items())


def test_without_adversarial_training_every_step_is_of_g(
    trainer: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "cfg", replace(trainer.cfg, adversarial=False))
    assert turns(trainer, monkeypatch, range(4)) == [0.0] * 4


def test_learning_rates_of_g_and_d_follow_the_published_schedule(
    trainer: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in (0, 1, 20, TOTAL - 1):
        turns(trainer, monkeypatch, range(i, i + 1))
        rate = 2e-4 * (1 - (i + 1) / TOTAL) ** 0.9
        assert trainer.rate == pytest.approx(rate, rel=1e-12)
        found = {
            g["lr"] for o in (trainer.optimizer_g, trainer.optimizer_d) for g in o.param_groups
        }
        assert sorted(found) == pytest.approx(sorted({rate, 10 * rate}), rel=1e-12)
        assert trainer.rates() == pytest.approx({"lr_x1": rate, "lr_x10": 10 * rate}, rel=1e-12)
    assert lr_schedule(1.0, TOTAL - 1, TOTAL, 0.9) == 0.0


def test_losses_of_g_and_d_are_the_weighted_sums_of_their_terms(
    trainer: AdversarialTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step returns detached losses, and a step of D builds no graph through G."""
    batch = encoded(trainer.model, 1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    g = trainer.generator_step(batch, weight=0.3)
    terms = g
    total = terms["main"] + terms["aux"] + terms["distillation"] + 0.3 * terms["adversarial_g"]
    torch.testing.assert_close(terms["loss_g"], total)
    trainer.model.load_state_dict(before)
    monkeypatch.setattr(trainer, "predict", predicted := Recorded(trainer.predict))
    d = trainer.discriminator_step(batch, choose_parts(0, 1))
    total = d["adversarial_d"] + 0.01 * d["diversity"]
    torch.testing.assert_close(d["loss_d"], total)
    assert not predicted.results[0].features[0].requires_grad
    for result in (g, d):
        assert not any(value.requires_grad for value in result.values())


def test_segmentation_losses_are_means_over_the_labelled_pixels(
    trainer: AdversarialTrainer,
) -> None:
    batch = encoded(trainer.model, 1)
    batch.query_mask[0, :20], batch.query_base_mask[0, :9] = 255, 255
    with torch.no_grad():
        prediction = trainer.predict(batch)
        got = trainer.segmentation_losses(prediction, batch, trainer.count_labeled_pixels(batch))
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
    """Return the error of a step of G, which must not have changed the model."""
    trainer = build_trainer()
    batch = encoded(trainer.model, 1)
    change(trainer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(NonFiniteStep) as caught:
        trainer.step(batch, 6, 6)
    after = trainer.model.state_dict()
    assert all(
        torch.equal(value.nan_to_num(7.0), after[n].nan_to_num(7.0)) for n, value in before.items()
    )
    return str(caught.value)


def test_nonfinite_loss_leaves_every_parameter_unchanged() -> None:
    def change(trainer: AdversarialTrainer) -> None:
        with torch.no_grad():
            trainer.model.object_mining.heads[2][-1].bias[0] = torch.inf

    assert poisoned(change).startswith("iteration 6: the loss is nan")


def test_nonfinite_gradient_leaves_every_parameter_unchanged() -> None:
    def change(trainer: AdversarialTrainer) -> None:
        weight = trainer.model.clue.down_query[0].weight
        weight.register_hook(lambda gradient: gradient * torch.nan)

    told = "iteration 6: the gradient of clue.down_query.0.weight is not finite, episodes: "
    assert poisoned(change).startswith(told)


def test_optimizer_states_are_restored(trainer: AdversarialTrainer) -> None:
    trainer.generator_step(encoded(trainer.model, 1), weight=0.1)
    other = build_trainer()
    other.load_state_dict(trainer.state_dict())
    for name in ("optimizer_g", "optimizer_d"):
        mine, theirs = (getattr(g, name).state_dict() for g in (trainer, other))
        assert mine["state"].keys() == theirs["state"].keys()
        for key, values in mine["state"].items():
            assert all(torch.equal(values[n], theirs["state"][key][n]) for n in values)
    assert trainer.optimizer_g.state
