"""Further losses: Dice, balanced cross entropy, and no distillation where nothing is there."""

from dataclasses import replace

import pytest
import torch
from helpers.small import BASE_CLASSES, config, encoded
from torch import Tensor, nn

from model import AMFormer
from model.amformer import losses
from model.backbones import LITE0
from util.runtime.distributed import Ranks
from util.train.adversarial import AdversarialTrainer


def example() -> tuple[Tensor, Tensor]:
    """Scores [4,2,5,5] and targets of 0, 1 and 255; the third has no object, the fourth no 0."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 2, 5, 5, generator=generator)
    target = torch.randint(0, 2, (4, 5, 5), generator=generator)
    target[2] = 0
    target[3] = 1
    target[:, 2, 1:4] = 255
    return scores, target


def pixels(scores: Tensor, target: Tensor) -> list[tuple[float, int]]:
    """Probability of the object and label of each labeled pixel of one episode."""
    found = []
    for y in range(5):
        for x in range(5):
            background, foreground = (float(scores[c, y, x].double().exp()) for c in (0, 1))
            if target[y, x] != 255:
                found.append((foreground / (background + foreground), int(target[y, x])))
    return found


def test_dice_is_that_of_the_labeled_pixels_and_0_without_an_object() -> None:
    scores, target = example()
    wanted = []
    for z, t in zip(scores, target, strict=True):
        pairs = pixels(z, t)
        overlap = sum(p * label for p, label in pairs)
        sizes = sum(p + label for p, label in pairs)
        wanted.append(1 - 2 * overlap / sizes if any(label for _, label in pairs) else 0.0)
    assert wanted[2] == 0 and min(wanted[:2]) > 0.1
    assert losses.dice(scores, target).item() == pytest.approx(sum(wanted) / 4, rel=1e-5)
    perfect = 50.0 * torch.stack((1 - target, target), 1).float()
    assert losses.dice(perfect[:2], target[:2]).item() == pytest.approx(0, abs=1e-6)


def test_balanced_weighs_object_and_background_of_each_episode_equally() -> None:
    scores, target = example()
    wanted = []
    for z, t in zip(scores, target, strict=True):
        of_kind: dict[int, list[float]] = {}
        for p, label in pixels(z, t):
            surprise = -torch.tensor(p if label else 1 - p).log().item()
            of_kind.setdefault(label, []).append(surprise)
        means = [sum(values) / len(values) for values in of_kind.values()]
        wanted.append(sum(means) / len(means))
    assert losses.balanced(scores, target).item() == pytest.approx(sum(wanted) / 4, rel=1e-5)
    without_labels = torch.full((1, 5, 5), 255)
    assert losses.balanced(scores[:1], without_labels) == 0


def test_scores_are_resized_to_the_target() -> None:
    generator = torch.Generator().manual_seed(2)
    small, target = torch.randn(2, 2, 3, 3, generator=generator), torch.zeros(2, 9, 9).long()
    target[:, :4] = 1
    large = nn.functional.interpolate(small, (9, 9), mode="bilinear", align_corners=True)
    for loss in (losses.dice, losses.balanced):
        torch.testing.assert_close(loss(small, target), loss(large, target))


def test_distillation_can_leave_out_what_has_no_object() -> None:
    generator = torch.Generator().manual_seed(3)
    correlations = [torch.randn(3, side, side, generator=generator) for side in (7, 5)]
    target = torch.zeros(3, 33, 33).long()
    target[0, 3:20, 5:30] = target[2, :9, :9] = 1
    alone = [losses.distillation([c[i : i + 1] for c in correlations], target[i : i + 1]).item()
             for i in (0, 2)]  # fmt: skip
    found = losses.distillation(correlations, target, skip_empty=True).item()
    assert found == pytest.approx(sum(alone) / 3, rel=1e-5)
    # Equal to the published loss where every target has an object.
    of_both = [c[[0, 2]] for c in correlations], target[[0, 2]]
    assert losses.distillation(*of_both, skip_empty=True) == losses.distillation(*of_both)


def build(absent: float = 0.0, **train: object) -> AdversarialTrainer:
    torch.manual_seed(0)
    cfg = config()
    cfg = replace(cfg, Train=replace(cfg.Train, adversarial=False, **train))
    cfg = replace(cfg, Data=replace(cfg.Data, absent=absent))
    model = AMFormer(LITE0, BASE_CLASSES, 1).train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return AdversarialTrainer(model, cfg, 10, Ranks(0, 1, torch.device("cpu")))


def test_step_adds_the_weighted_losses_of_gs_masks_also_in_parts() -> None:
    plain = build()
    torch.manual_seed(1)
    batch = encoded(plain.model, 1)
    batch.query_mask[0] = torch.where(batch.query_mask[0] == 1, 0, batch.query_mask[0])
    with torch.no_grad():
        prediction = plain.predict(batch)
    before = plain.generator_step(batch, weight=0.0)
    assert not {"dice", "balanced"} & before.keys()
    for parts in (1, 2):
        trainer = build(dice_weight=0.5, balanced_weight=2.0, accumulate=parts)
        after = trainer.generator_step(batch, weight=0.0)
        for name in ("dice", "balanced"):
            levels = [getattr(losses, name)(z, batch.query_mask) for z in prediction.logits]
            torch.testing.assert_close(after[name], torch.stack(levels).mean())
        total = before["loss_g"] + 0.5 * after["dice"] + 2 * after["balanced"]
        torch.testing.assert_close(after["loss_g"], total)


def test_training_with_absent_classes_distills_only_what_is_there() -> None:
    usual, absent = build(), build(absent=0.3)
    torch.manual_seed(1)
    batch = encoded(usual.model, 1)
    found = [t.generator_step(batch, weight=0.0)["distillation"] for t in (usual, absent)]
    assert found[0] == found[1]
    batch.query_mask[1] = 0
    usual, absent = build(), build(absent=0.3)
    with torch.no_grad():
        prediction = usual.predict(batch)
        first = losses.distillation([c[:1] for c in prediction.correlations], batch.query_mask[:1])
    step = absent.generator_step(batch, weight=0.0)
    torch.testing.assert_close(step["distillation"], first / 2)
