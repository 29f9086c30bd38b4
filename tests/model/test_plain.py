"""The cheap formulation against the plain one, with the same weights: results, steps, memory."""

import pytest
import torch
from helpers.small import BASE_CLASSES, SIZE, balance_heads, config, episode_batch, images
from torch import Tensor

from model import AMFormer
from model.amformer import plain
from model.backbones import LITE0
from util.bench import plain_training
from util.bench.plain_training import PlainAdversarialTrainer, PlainBatch
from util.features import encode
from util.runtime.distributed import Ranks
from util.train.adversarial import AdversarialTrainer, choose_parts

CPU = Ranks(0, 1, torch.device("cpu"))
TOLERANCE = 1e-8  # float64, largest error over largest value


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def with_every_part_active(model: AMFormer) -> AMFormer:
    """Give norms statistics, and psi and the base learner weights, so that every part matters."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "norm.bias", "bn.bias")):
                value.normal_(0, 0.1)
        for head in model.object_mining.heads:
            head[-1].weight *= 100  # else all logits are almost equal
        model.ensemble.gram_merge.weight += 0.01
        model.ensemble.cls_merge.weight += 0.01
    return model


def assert_same(got: Tensor, expected: Tensor, name: str) -> None:
    assert got.shape == expected.shape, name
    error = (got - expected).abs().max().item()
    assert error <= TOLERANCE * max(expected.abs().max().item(), 1e-3), (name, error)


@pytest.mark.parametrize("softmax", ["query", "key"])
@pytest.mark.parametrize(("backbone", "shot"), [(LITE0, 1), (LITE0, 3), ("resnet50", 1)])
def test_every_array_equals_the_plain_formulation(backbone: str, shot: int, softmax: str) -> None:
    model = (
        with_every_part_active(AMFormer(backbone, BASE_CLASSES, shot, mining_softmax=softmax))
        .eval()
        .double()
    )
    query, support, mask = images(2, shot)
    mask[1] = mask[1].roll(9, -1) * (
        torch.arange(SIZE) % 3 > 0
    )  # another number of positions inside
    mask[1, 0, : SIZE // 2] = 0
    episode = query.double(), support.double(), mask
    balance_heads(model, *episode)
    with torch.no_grad():
        got, expected = model(*episode), plain.predict(model, *episode)
    assert 0 < expected.mask1.mean() < 1
    for name, value in vars(expected).items():
        pairs = zip(vars(got)[name], value, strict=True) if isinstance(value, list) else []
        pairs = [(vars(got)[name], value)] if isinstance(value, Tensor) else pairs
        for mine, theirs in pairs:
            assert_same(mine, theirs, name)


def test_one_query_can_serve_all_episodes_of_a_batch() -> None:
    model = with_every_part_active(AMFormer(LITE0, BASE_CLASSES, 2)).eval().double()
    query, support, mask = images(3, 2)
    query = query[:1].double()
    supports = model.encoder.supports(support.double(), mask)
    with torch.no_grad():
        together = model.match(model.encoder.query(query), supports)
        apart = model(query.expand(3, -1, -1, -1), support.double(), mask)
    for name in ("final", "prior", "psi", "initial_mask", "base_logits"):
        assert_same(getattr(together, name), getattr(apart, name), name)


@pytest.mark.parametrize("network", ["G", "D"])
def test_training_step_equals_the_plain_formulation(network: str) -> None:
    steps = []
    for kind, encoded in (
        (AdversarialTrainer, lambda m, b: encode(m.encoder, b)),
        (PlainAdversarialTrainer, plain_training.encode),
    ):
        torch.manual_seed(3)
        model = with_every_part_active(AMFormer(LITE0, BASE_CLASSES, 1)).double().train()
        for module in model.modules():
            if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
                module.p = 0.0
        trainer = kind(model, config(), 100, CPU)
        batch = encoded(model, episode_batch(1, dtype=torch.float64))
        if network == "G":
            result = trainer.generator_step(batch, weight=0.1)
        else:
            result = trainer.discriminator_step(batch, choose_parts(0, 1))
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        steps.append((result, gradients))
    (losses, gradients), (expected, directions) = steps
    assert set(losses) <= set(expected) and len(gradients) == len(directions) > 40
    for name, value in losses.items():
        assert_same(value, expected[name], name)
    for name, value in gradients.items():
        assert_same(value, directions[name], name)


def kept_bytes(trainer: AdversarialTrainer, batch: object) -> int:
    """Return what G's graph keeps for its backward pass, without weights and batch."""
    storages = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        prediction = trainer.predict(batch)
        loss = sum(
            trainer.segmentation_losses(
                prediction, batch, trainer.count_labeled_pixels(batch)
            ).values()
        )
    for known in (*trainer.model.parameters(), *maps_of(batch)):
        storages.pop(known.untyped_storage().data_ptr(), None)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def maps_of(batch: object) -> list[Tensor]:
    if isinstance(batch, PlainBatch):
        return [*batch.query.features.maps(), *batch.support.maps()]
    return [*batch.query.tensors(), *(t for [s] in batch.supports for t in s.tensors())]


def test_step_of_g_keeps_a_third_of_the_memory_of_the_plain_formulation() -> None:
    """At 257 px. The fraction falls with the size, because no matrix of N x N is kept."""
    model, batch = AMFormer(LITE0, BASE_CLASSES, 1).train(), episode_batch(1, size=257)
    mine = kept_bytes(AdversarialTrainer(model, config(), 100, CPU), encode(model.encoder, batch))
    theirs = kept_bytes(
        PlainAdversarialTrainer(model, config(), 100, CPU), plain_training.encode(model, batch)
    )
    assert mine <= 0.35 * theirs
