"""Eval.kshot: K supports for a model that was trained with another K.

In float64: in float32 the order of sums can move a position across a threshold of a mask.
"""

from typing import get_args

import pytest
import torch
from helpers.small import BASE_CLASSES, balance_heads, images
from torch import Tensor

from model import AMFormer, Prediction, UserError
from model.backbones import LITE0
from model.system import KSHOT
from util.config import KEYS, Config
from util.evaluate.metrics import argmax_channels

SHOTS = 3


def system(shot: int) -> AMFormer:
    """Return a random model whose masks are neither empty nor full and depend on psi."""
    torch.manual_seed(0)
    model = AMFormer(LITE0, BASE_CLASSES, shot).eval().double()
    with torch.no_grad():
        for head in model.object_mining.heads:
            head[-1].weight *= 100
        model.ensemble.gram_merge.weight[0, 1] = 0.5
    return model


@pytest.fixture(scope="module")
def episode() -> tuple[Tensor, Tensor, Tensor]:
    """Return two queries with supports whose objects differ in look, size and place."""
    torch.manual_seed(1)
    query, support, mask = images(2, SHOTS)
    for k in range(SHOTS):
        mask[:, k] = mask[:, k].roll((9 * k, 7 * k), (-2, -1))
        mask[:, k, : 10 * k] = 0
        support[:, k] += k * mask[:, k, None].eq(1)
    return query.double(), support.double(), mask


@pytest.fixture(scope="module")
def one_shot(episode: tuple[Tensor, Tensor, Tensor]) -> AMFormer:
    query, support, mask = episode
    model = system(1)
    balance_heads(model, query, support[:, :1], mask[:, :1])
    return model


@torch.no_grad()
def predict(model: AMFormer, episode: tuple, shots: list[int], kshot: str) -> Prediction:
    query, support, mask = episode
    supports = [[s[k] for k in shots] for s in model.encoder.supports(support, mask)]
    return model.match(model.encoder.query(query), supports, kshot=kshot)


def maps(prediction: Prediction) -> dict[str, Tensor]:
    found = {n: v for n, v in vars(prediction).items() if isinstance(v, Tensor)}
    for name, value in vars(prediction).items():
        if isinstance(value, list):
            found |= {f"{name}{i}": each for i, each in enumerate(value)}
    assert len(found) == 20
    return found


def test_kshot_option_offers_the_choices_of_the_model() -> None:
    assert get_args(KEYS["Eval.kshot"].annotation) == KSHOT and Config().Eval.kshot == "model"


def test_one_support_gives_the_same_result_for_every_kshot(
    one_shot: AMFormer, episode: tuple
) -> None:
    expected = maps(predict(one_shot, episode, [0], "model"))
    for kshot in ("ensemble", "prototype"):
        got = maps(predict(one_shot, episode, [0], kshot))
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)


def test_ensemble_is_the_mean_of_one_shot_predictions(one_shot: AMFormer, episode: tuple) -> None:
    one_by_one = [maps(predict(one_shot, episode, [k], "model")) for k in range(SHOTS)]
    finals = [each["final"] for each in one_by_one]
    assert not any(torch.allclose(finals[0], other, atol=1e-3) for other in finals[1:])
    together = maps(predict(one_shot, episode, list(range(SHOTS)), "ensemble"))
    for name, value in together.items():
        mean = torch.stack([each[name] for each in one_by_one]).mean(0)
        assert torch.allclose(value, mean, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("kshot", ["ensemble", "prototype"])
def test_order_of_supports_does_not_change_the_scores(
    one_shot: AMFormer, episode: tuple, kshot: str
) -> None:
    first = predict(one_shot, episode, [0, 1, 2], kshot)
    for order in ([2, 0, 1], [1, 0, 2]):
        other = predict(one_shot, episode, order, kshot)
        assert torch.allclose(first.final, other.final, atol=1e-9)
        for scores in zip(first.scores, other.scores, strict=True):
            a, b = map(argmax_channels, scores)
            assert torch.equal(a, b) and 0.02 < a.float().mean() < 0.98


def test_prototype_equals_the_published_k_shot_model_with_equal_weights(episode: tuple) -> None:
    model = system(SHOTS)
    balance_heads(model, *episode)
    with torch.no_grad():
        model.ensemble.kshot[2].weight.mul_(20)
        model.ensemble.kshot[0].bias.fill_(0.3)
    shots = list(range(SHOTS))
    uneven = predict(model, episode, shots, "model")
    prototype = predict(model, episode, shots, "prototype")
    assert not torch.allclose(uneven.psi, prototype.psi, rtol=1e-3)
    torch.testing.assert_close(uneven.prior, prototype.prior, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for parameter in model.ensemble.kshot[2].parameters():
            parameter.zero_()
    even = maps(predict(model, episode, shots, "model"))
    for name, value in maps(prototype).items():
        assert torch.allclose(value, even[name], atol=1e-9), name


def test_k_shot_model_accepts_another_k_unless_kshot_is_model(episode: tuple) -> None:
    model = system(5)
    for kshot in ("ensemble", "prototype"):
        for shots in ([0], [0, 1, 2]):
            assert predict(model, episode, shots, kshot).final.isfinite().all()
    with pytest.raises(UserError, match="built for 5 .* got 3: .* or Eval.kshot to ensemble"):
        predict(model, episode, [0, 1, 2], "model")
    with pytest.raises(UserError, match="kshot is 'mean': use one of model, ensemble, prototype"):
        predict(model, episode, [0], "mean")
