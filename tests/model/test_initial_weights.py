"""Initial weights: every parameter starts from the published distribution (method 3)."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from model import AMFormer
from model.base_learner import BaseLearner

SHOTS = 5


def default_bound(weight: Tensor) -> float:
    """Bound of PyTorch's uniform start of linear layers and convolutions: 1 / sqrt(fan in)."""
    return 1 / math.sqrt(weight[0].numel())


def expected_deviation(name: str, weight: Tensor) -> float:
    """The published deviation of a parameter's start."""
    if name.endswith(".parts"):
        return 1 / math.sqrt(12)  # uniform in 0..1
    if re.fullmatch(r"object_mining\.(refine_)?mining\.\d\.fuse\.conv\.weight", name):
        return math.sqrt(2 / (len(weight) * 9))  # mmcv's ConvModule: normal, from the fan out
    return default_bound(weight) / math.sqrt(3)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters outside the backbone, which has its own weights."""
    named = model.named_parameters()
    return {name: p.detach() for name, p in named if "backbone." not in name}


@pytest.fixture(scope="module")
def model() -> AMFormer:
    torch.manual_seed(0)
    return AMFormer("resnet50", 15, SHOTS)


def test_every_weight_starts_with_the_published_deviation(model: AMFormer) -> None:
    weights = {n: w for n, w in parameters(model).items() if w.ndim > 1 and "_merge.w" not in n}
    assert len(weights) > 150
    for name, weight in weights.items():
        # The deviation of n draws has a relative error of at most 0.71 / sqrt(n).
        error = 4 * 0.71 / math.sqrt(weight.numel())
        found = weight.double().pow(2).mean().sqrt().item()
        if name.endswith(".parts"):
            found = weight.double().std().item()
        assert found == pytest.approx(expected_deviation(name, weight), rel=error), name


def test_projections_of_g_are_uniform_with_deviation_0_072(model: AMFormer) -> None:
    names = [n for n in parameters(model) if re.search(r"\.attention\.[qkvo]\.weight", n)]
    assert len(names) == 4 * (6 + 5)  # six encoder layers, five mining layers
    for name in names:
        weight = model.get_parameter(name).detach()
        assert 0.12 < weight.abs().max() <= 0.125 and weight.std() == pytest.approx(0.072, abs=2e-3)


def test_norms_start_neutral_and_biases_within_their_bound(model: AMFormer) -> None:
    for name, module in model.named_modules():
        if "backbone." in name:
            continue
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
        elif isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            bound = default_bound(module.weight)
            assert module.bias.abs().max() <= bound, name
            assert module.bias.numel() < 8 or module.bias.abs().max() > bound / 2, name


def test_weights_of_the_ensemble_start_as_one_and_zero(model: AMFormer) -> None:
    for merge in (model.ensemble.gram_merge, model.ensemble.cls_merge):
        assert merge.weight.flatten().tolist() == [1, 0]


def test_k_shot_weights_without_a_hidden_layer_start_as_a_mean() -> None:
    model = AMFormer("resnet50", 15, SHOTS, kshot_trans_dim=0)
    assert model.ensemble.kshot.weight.unique().tolist() == [pytest.approx(1 / SHOTS)]
    distances = torch.rand(3, SHOTS)
    torch.testing.assert_close(model.ensemble.psi(distances), distances.mean(1))


def test_truncated_normal_is_a_switch() -> None:
    torch.manual_seed(0)
    model = AMFormer("resnet50", 15, 1, projection_init="trunc_normal")
    for layer in (model.object_mining.pyramid[0].layers[0], model.object_mining.mining[0].layer):
        for projection in (layer.attention.q, layer.attention.o):
            assert projection.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.detail_mining.attention[0].q.weight.std().item() == pytest.approx(0.072, rel=0.05)


def test_base_learner_starts_with_the_published_deviations() -> None:
    torch.manual_seed(0)
    for name, weight in parameters(BaseLearner("resnet50", 15)).items():
        if weight.ndim > 1:
            expected = default_bound(weight) / math.sqrt(3)
            assert weight.std().item() == pytest.approx(expected, rel=0.03), name
