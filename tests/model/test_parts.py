"""Losses, ensemble and D against their formulas in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.amformer import losses
from model.amformer.detail_mining import DetailMining, DiscriminatorOutputs, PartAttention
from model.constants import IGNORE
from model.ensemble import Ensemble, base_probability
from model.losses import cross_entropy


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_same(got: Tensor, expected: object) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- losses -------------------------------------------------------------------------------------


def test_cross_entropy_counts_only_labeled_pixels() -> None:
    scores, target = draw(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    target[:, 0] = 255
    target[1, :, 3] = 255
    log = np.log(softmax(scores.numpy(), 1))
    rows = [
        -log[b, target[b, i, j], i, j]
        for b, i, j in np.ndindex(2, 5, 5)
        if target[b, i, j] != IGNORE
    ]
    assert_same(cross_entropy(scores, target, torch.tensor(7.0)), sum(rows) / 7)


def test_cross_entropy_resizes_scores_with_aligned_corners() -> None:
    scores, target = draw(1, 2, 3, 3), torch.randint(0, 2, (1, 9, 9))
    large = F.interpolate(scores, (9, 9), mode="bilinear", align_corners=True)
    one = torch.tensor(1.0)
    assert_same(cross_entropy(scores, target, one), cross_entropy(large, target, one).numpy())


def test_distillation_is_the_kl_divergence_over_positions_of_each_scale() -> None:
    target = torch.zeros(3, 12, 12, dtype=torch.long)
    target[0, 2:9, 3:8], target[1, 4:12, 0:6], target[2, :, :1] = 1, 1, 255
    correlations = [draw(3, 3, 3), draw(3, 6, 6), draw(3, 12, 12)]
    expected = []
    wanted = np.where(target.numpy() == 1, 1.0, -1e9)
    for c in correlations:
        side = c.shape[-1]
        small = F.interpolate(torch.from_numpy(wanted)[:, None], (side, side), mode="bilinear")
        t, s = softmax(small.numpy().reshape(3, -1), 1), softmax(c.numpy().reshape(3, -1), 1)
        terms = t * np.log(t + 1e-12) - t * np.log(s + 1e-12)
        expected.append(terms.sum(1).mean())
    assert_same(losses.distillation(correlations, target), np.mean(expected))


def discriminator_outputs(levels: int = 3) -> list[DiscriminatorOutputs]:
    return [
        DiscriminatorOutputs(
            draw(2, 14, 9).sigmoid(), draw(2, 14, 9).sigmoid(), draw(2, 1), draw(2, 1)
        )
        for _ in range(levels)
    ]


def bce(score: Tensor, label: float) -> float:
    p = sigmoid(score.numpy())
    return -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()


def test_adversarial_losses_of_g_and_d_equal_their_formulas() -> None:
    made = discriminator_outputs()
    assert_same(losses.generator(made), np.mean([bce(d.fake_score, 1.0) for d in made]))
    each = [(bce(d.fake_score, 0.0) + bce(d.real_score, 0.9)) / 2 for d in made]
    assert_same(losses.discriminator(made), np.mean(each))


def test_diversity_is_the_mean_cosine_of_distinct_chosen_part_maps() -> None:
    made = discriminator_outputs()
    chosen = torch.stack(
        [torch.stack([torch.randperm(14)[:9] for _ in range(2)]) for _ in range(3)]
    )
    expected = []
    for level, rows in zip(made, chosen, strict=True):
        for maps, picked in zip((level.fake_maps, level.real_maps), rows, strict=True):
            m = maps[:, picked].numpy()
            per_image = []
            for image in m:
                cosines = [
                    a @ b / np.sqrt((a @ a) * (b @ b) + 1e-8)
                    for i, a in enumerate(image)
                    for b in image[i + 1 :]
                ]
                assert len(cosines) == 36
                per_image.append(abs(sum(cosines)) / 36)
            expected.append(np.mean(per_image))
    assert_same(losses.diversity(made, chosen), np.mean(expected))


# --- the ensemble -------------------------------------------------------------------------------


def ensemble(shot: int) -> Ensemble:
    made = Ensemble(shot).double()
    with torch.no_grad():
        made.gram_merge.weight.copy_(torch.tensor([0.9, 0.2]).view(1, 2, 1, 1))
        made.cls_merge.weight.copy_(torch.tensor([0.8, 0.3]).view(1, 2, 1, 1))
    return made


def test_ensemble_merges_scores_with_psi_and_background_with_base_learner() -> None:
    logits, base, psi = draw(2, 2, 12, 12), draw(2, 1, 12, 12).sigmoid(), draw(2).abs() / 10
    made = ensemble(1)
    final, foreground = made(logits, base, psi)
    merged = 0.9 * softmax(logits.numpy(), 1) + 0.2 * psi.numpy()[:, None, None, None]
    background = 0.8 * merged[:, :1] + 0.3 * base.numpy()
    np.testing.assert_allclose(final[:, :1].detach(), background, rtol=1e-6)
    np.testing.assert_allclose(foreground.detach(), merged[:, 1:], rtol=1e-6)
    assert torch.equal(final[:, 1:], foreground)
    mask = made.hard_mask(logits, base, psi)
    wanted = (merged[:, 1:] > 0.5) & ~(background > merged[:, 1:])
    assert np.array_equal(mask.numpy(), wanted) and 0 < wanted.mean() < 1
    assert ((merged[:, 1:] > 0.5) != wanted).any()  # the base learner removes some ...
    between = (merged[:, 1:] > 0.5) & (merged[:, 1:] < 0.6)
    assert (between & wanted).any()  # ... and some are near the threshold
    made.keep_every_position = True
    assert made.hard_mask(logits, base, psi).eq(1).all()


def test_shot_weights_come_from_sorted_distances_and_apply_in_shot_order() -> None:
    made, distances = ensemble(3), draw(4, 3).abs()
    assert_same(ensemble(1).psi(distances[:, :1]), distances[:, 0])
    first, _, last = made.kshot
    with torch.no_grad():
        for parameter in made.kshot.parameters():
            parameter.normal_()
        first.bias += 1
    w1, w2 = (layer.weight.detach().flatten(1).numpy() for layer in (first, last))
    b1, b2 = (layer.bias.detach().numpy() for layer in (first, last))
    ordered = np.sort(distances.numpy(), 1)
    weights = softmax(np.maximum(ordered @ w1.T + b1, 0) @ w2.T + b2, 1)
    assert not np.array_equal(ordered, distances.numpy())
    assert_same(made.psi(distances), (weights * distances.numpy()).sum(1))


def test_base_probability_leaves_out_the_class_of_the_episode() -> None:
    logits = draw(3, 5, 2, 2)  # background and four classes
    p = softmax(logits.numpy(), 1)
    assert_same(base_probability(logits, None), p[:, 1:].sum(1, keepdims=True))
    own = [0, 3, 1]
    expected = [
        p[b, [c for c in range(1, 5) if c != own[b] + 1]].sum(0, keepdims=True) for b in range(3)
    ]
    assert_same(base_probability(logits, torch.tensor(own)), np.stack(expected))


# --- D ------------------------------------------------------------------------------------------


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def parts_by_hand(attend: PartAttention, tokens: np.ndarray, mask: np.ndarray) -> tuple:
    """Return parts [14,64] and part maps [14,N] of one image, computed head by head."""
    weight = {n: p.detach().numpy() for n, p in attend.named_parameters()}
    masked = tokens * mask[:, None]
    q, k, v = (x @ weight[f"{n}.weight"].T for n, x in
               (("q", weight["parts"]), ("k", masked), ("v", masked)))  # fmt: skip
    logits, seen = [], []
    for head in range(4):
        cut = slice(16 * head, 16 * head + 16)
        keys = k[:, cut] / np.maximum(np.linalg.norm(k[:, cut], axis=1, keepdims=True), 1e-12)
        logits.append(norm(q[:, cut]) @ keys.T / 0.1)
        seen.append(softmax(logits[-1], 1) @ v[:, cut])
    maps = sigmoid(np.mean(logits, 0)) * mask
    x = weight["parts"] + np.concatenate(seen, 1) @ weight["proj.weight"].T
    hidden = np.maximum(x @ weight["expand.weight"].T, 0)
    x = x + hidden @ weight["contract.weight"].T
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return x * weight["norm.weight"] + weight["norm.bias"], maps


def test_d_scores_the_part_whose_fake_and_real_forms_differ_most() -> None:
    made = DetailMining(sigmoid=False).double().eval()
    features = [draw(2, 64, 3, 4) for _ in range(3)]
    fake, real = draw(2, 1, 3, 4).sigmoid(), (draw(2, 1, 3, 4) > 0).double()
    got = made(features, fake, real)
    chosen = []
    for level, outputs in enumerate(got):
        attend, judge = made.attention[level], made.discriminators[level]
        for image in range(2):
            tokens = features[level][image].flatten(1).T.numpy()
            pairs = []
            for mask, maps in ((fake, outputs.fake_maps), (real, outputs.real_maps)):
                parts, wanted = parts_by_hand(attend, tokens, mask[image].flatten().numpy())
                np.testing.assert_allclose(maps[image].detach(), wanted, rtol=1e-9, atol=1e-12)
                pairs.append(parts)
            worst = int(np.argmin((norm(pairs[0]) * norm(pairs[1])).sum(1)))
            chosen.append(worst)
            for parts, score in zip(pairs, (outputs.fake_score, outputs.real_score), strict=True):
                expected = judge(torch.from_numpy(parts[worst])).detach().numpy()
                np.testing.assert_allclose(score[image].detach(), expected, rtol=1e-9)
    assert len(set(chosen)) > 1
