"""Which base classes the ensemble takes for background: `Method.base_map`."""

import pytest
import torch
from helpers.small import BASE_CLASSES, balance_heads, config, images
from torch import Tensor

from model import AMFormer, build_model
from model.amformer import plain
from model.backbones import LITE0
from model.ensemble import base_probability


def built(shot: int = 1, **options: str) -> AMFormer:
    """A model whose base learner is sure of several classes."""
    torch.manual_seed(0)
    model = AMFormer(LITE0, BASE_CLASSES, shot, **options).eval().double()
    with torch.no_grad():
        model.encoder.base.classifier.weight *= 40
        model.ensemble.cls_merge.weight += 0.3
        for head in model.object_mining.heads:
            head[-1].weight *= 100
    return model


def episode(batch: int = 3, shot: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    query, support, mask = images(batch, shot)
    mask[1] = mask[1].roll(12, -1)
    return query.double(), support.double(), mask


@pytest.mark.parametrize("base_map", ["all", "unshown", "none"])
@pytest.mark.parametrize("shot", [1, 3])
def test_predictions_equal_the_plain_formulation(shot: int, base_map: str) -> None:
    model, given = built(shot, base_map=base_map), episode(shot=shot)
    balance_heads(model, *given)
    with torch.no_grad():
        got, wanted = model(*given), plain.predict(model, *given)
        own = torch.tensor([3, 0, 3])
        in_training = model(*given, class_index=own), plain.predict(model, *given, class_index=own)
    for one, other in ((got, wanted), in_training):
        torch.testing.assert_close(one.final, other.final)
        torch.testing.assert_close(one.logits, other.logits)


@torch.no_grad()
def test_shown_are_the_highest_class_and_those_not_below_the_background() -> None:
    model, (_, support, mask) = built(2), episode(3, 2)
    mask[2] = 0  # nothing is shown
    supports = model.encoder.supports(support, mask)
    for sign in (0.0, 3.0, -60.0):  # the background is in the middle, high, or low
        bias = model.encoder.base.classifier.bias
        bias[0] = sign
        shown = model.encoder.shown_classes(supports)
        for row, shots in enumerate(supports):
            positions = [s.f5[:, i] for s in shots for i in range(s.f5.shape[1])]
            wanted = [False] * (BASE_CLASSES + 1)
            if positions:
                mean = torch.zeros(BASE_CLASSES + 1).double()
                for f5 in positions:
                    logits = model.encoder.base.classifier(f5.relu()[None, :, None, None])
                    mean += logits.softmax(1).flatten() / len(positions)
                best = max(range(1, BASE_CLASSES + 1), key=lambda c: mean[c])
                wanted = [False] + [
                    c == best or bool(mean[c] >= mean[0]) for c in range(1, BASE_CLASSES + 1)
                ]
            assert shown[row].tolist() == wanted
    assert shown[0].all() == shown[0][0]  # never the background


def test_base_probability_is_the_sum_over_the_classes_that_are_not_shown() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0, 3.0]).log().nan_to_num(neginf=-99)[None, :, None, None]
    shown = torch.tensor([[False, False, False, True], [False, True, False, False]])
    found = base_probability(logits.expand(2, -1, 1, 1), None, shown).flatten()
    torch.testing.assert_close(found, torch.tensor([2 / 6, 3 / 6]))
    both = base_probability(logits.expand(2, -1, 1, 1), torch.tensor([0, 2]), shown).flatten()
    torch.testing.assert_close(both, torch.tensor([0.0, 0.0]))


@torch.no_grad()
def test_known_class_is_not_called_background_where_the_support_shows_it() -> None:
    """The query is the support: what the base learner sees there is left out of the base map."""
    given = episode(2)
    query, support, mask = given[1][:, 0], given[1], torch.ones_like(given[2])
    answers = {kind: built(base_map=kind)(query, support, mask) for kind in ("all", "unshown")}
    scores = {kind: answer.final[:, 0] for kind, answer in answers.items()}
    torch.testing.assert_close(answers["all"].base_logits, answers["unshown"].base_logits)
    assert (scores["unshown"] < scores["all"]).float().mean() > 0.5  # background scores


@torch.no_grad()
def test_without_base_map_a_model_of_new_merge_weights_answers_as_g_alone() -> None:
    model, given = built(base_map="none"), episode()
    model.ensemble.cls_merge.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    answer = model(*given)
    assert torch.equal(answer.final.argmax(1), answer.logits[-1].argmax(1))


def test_option_reaches_the_model_and_changes_no_weight() -> None:
    models = [build_model(config(base_map=kind)) for kind in ("all", "unshown", "none")]
    assert [model.base_map for model in models] == ["all", "unshown", "none"]
    assert len({tuple(model.state_dict()) for model in models}) == 1
