"""Each cheap form gives the numbers and the gradients of the direct formula, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.amformer import plain
from model.amformer.clue import ClueExtractor
from model.attention import (
    MaskedMiningAttention,
    ReducedAttention,
    mining_attention,
    soft_correlation,
)
from model.backbones import LITE0
from model.base_learner import BaseLearner, Features
from model.folding import LinearChain, conv3x3_of_enlarged, fold_batch_norms
from model.prior import gram_distances, max_similarity, training_free_prior
from model.query_support import QueryFeatures, SupportFeatures, gram_matrix
from model.resize import bilinear_ac

TOLERANCE = 1e-10  # largest error over largest value, float64


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def draw(*shape: int, trainable: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=trainable)


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    error = (got - expected).abs().max().item()
    assert error <= TOLERANCE * max(expected.abs().max().item(), 1e-30)


def assert_same_with_gradients(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert_same(got, expected)
    direction = draw(*expected.shape)
    pairs = (torch.autograd.grad(out, inputs, direction) for out in (got, expected))
    for ours, direct in zip(*pairs, strict=True):
        assert_same(ours, direct)


# --- convolution of enlarged cells --------------------------------------------------------------


@pytest.mark.parametrize("cells", [(1, 1), (2, 2), (3, 3), (6, 6), (2, 5)])
@pytest.mark.parametrize("size", [(9, 9), (13, 8), (5, 17), (5, 4), (1, 3)])
def test_conv3x3_of_enlarged_equals_convolution_of_the_enlarged_map(
    cells: tuple[int, int], size: tuple[int, int]
) -> None:
    x, weight = draw(2, 3, *cells, trainable=True), draw(4, 3, 3, 3, trainable=True)
    got = conv3x3_of_enlarged(x, weight, size)
    expected = F.conv2d(bilinear_ac(x, size), weight, padding=1)
    assert_same_with_gradients(got, expected, [x, weight])


# --- chains of convolutions ---------------------------------------------------------------------


def chain(out: int, *, last_norm: bool) -> LinearChain:
    """Return a chain whose batch norms have random weights and statistics."""
    made = LinearChain(5, out, hidden=16, last_norm=last_norm).double()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.3, 2.0)
            elif value.is_floating_point():
                value.normal_()
    return made


@pytest.mark.parametrize(("out", "last_norm"), [(5, True), (2, False)], ids=["parse", "head"])
@pytest.mark.parametrize("size", [(6, 6), (4, 9), (1, 2), (1, 1)])
def test_frozen_chain_equals_its_layers_in_output_and_gradients(
    out: int, last_norm: bool, size: tuple[int, int]
) -> None:
    made = chain(out, last_norm=last_norm).eval()
    x = draw(2, 5, *size, trainable=True)
    inputs = [x, *made.parameters()]
    assert len(inputs) == 1 + 3 * 2 + 2 * (3 if last_norm else 2)
    assert_same_with_gradients(made(x), nn.Sequential.forward(made, x), inputs)


@pytest.mark.parametrize("last_norm", [True, False])
def test_chain_with_training_batch_norms_runs_layer_by_layer(
    last_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chain(5, last_norm=last_norm).train()
    twin = nn.Sequential(*chain(5, last_norm=last_norm)).train()
    twin.load_state_dict(made.state_dict())
    monkeypatch.setattr(made, "compose", lambda: pytest.fail("the chain was folded"))
    x = draw(3, 5, 4, 6)
    assert_same(made(x), twin(x))
    for name, value in twin.state_dict().items():  # running statistics too
        torch.testing.assert_close(made.state_dict()[name], value)
    assert made[1].num_batches_tracked == 1


# --- attention ----------------------------------------------------------------------------------


def dense_mining(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, *, over_keys: bool) -> Tensor:
    scores = q @ k.transpose(-2, -1) / 0.1  # [B,heads,N queries,N keys]
    kept = keep[:, None, None, :]
    if over_keys:
        attention = torch.softmax(scores.masked_fill(~kept, -torch.inf), dim=-1).nan_to_num(0)
    else:
        attention = torch.softmax(scores, dim=-2) * kept
    return attention @ v


def unit(*shape: int) -> Tensor:
    return F.normalize(draw(*shape), dim=-1).requires_grad_()


def keep_of(kind: str) -> Tensor:
    """Return the kept keys [2,12]; `mixed` has an empty row."""
    rows = {
        "some": [[1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]],
        "all": [[1] * 12] * 2,
        "mixed": [[0] * 12, [1, 0] * 6],
        "none": [[0] * 12] * 2,
    }
    return torch.tensor(rows[kind], dtype=torch.bool)


@pytest.mark.parametrize("over_keys", [False, True], ids=["over queries", "over keys"])
@pytest.mark.parametrize("kind", ["some", "all", "mixed", "none"])
def test_mining_attention_equals_dense_attention_in_output_and_gradients(
    kind: str, over_keys: bool
) -> None:
    q, k, v = unit(2, 2, 12, 4), unit(2, 2, 12, 4), draw(2, 2, 12, 4, trainable=True)
    keep = keep_of(kind)
    got = mining_attention(q, k, v, keep, over_keys=over_keys)
    expected = dense_mining(q, k, v, keep, over_keys=over_keys)
    if kind in ("mixed", "none"):
        assert not got[0].any()
    if over_keys and kind in ("mixed", "none"):  # the dense form has no gradient there: 0 / 0
        assert_same(got, expected)
        assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), [q, k, v]))
    else:
        assert_same_with_gradients(got, expected, [q, k, v])


@pytest.mark.parametrize("over_keys", [False, True])
def test_mining_attention_does_not_overflow_in_float32(over_keys: bool) -> None:
    q = F.normalize(torch.ones(1, 1, 50, 8), dim=-1)
    k = torch.cat((q[:, :, :25], -q[:, :, 25:]), dim=2)
    v = torch.randn(1, 1, 50, 8)
    keep = torch.ones(1, 50, dtype=torch.bool)
    got = mining_attention(q, k, v, keep, over_keys=over_keys)
    torch.testing.assert_close(got, dense_mining(q, k, v, keep, over_keys=over_keys))


@pytest.mark.parametrize("kind", ["some", "all", "mixed", "none"])
def test_soft_correlation_equals_masked_mean_of_all_scores(kind: str) -> None:
    q, k = unit(2, 2, 12, 4), unit(2, 2, 12, 4)
    mask = (torch.rand(2, 12, dtype=torch.float64) * keep_of(kind)).requires_grad_()
    scores = q @ k.transpose(-2, -1) / 0.1
    total = mask.sum(1)[:, None, None] + 1e-9
    expected = ((scores * mask[:, None, None]).sum(-1) / total).mean(1)
    assert_same_with_gradients(soft_correlation(q, k, mask), expected, [q, k, mask])


@pytest.mark.parametrize("softmax", ["query", "key"])
def test_masked_mining_normalizes_per_head_and_keeps_every_nonzero_key(softmax: str) -> None:
    layer = MaskedMiningAttention(8, heads=2, softmax=softmax).double()
    x, mask = draw(2, 12, 8), 10 * torch.rand(2, 12, dtype=torch.float64) * keep_of("some")

    def heads(projection: nn.Linear) -> Tensor:
        return projection(x).view(2, 12, 2, 4).transpose(1, 2)

    q, k = (heads(p) / heads(p).norm(dim=-1, keepdim=True) for p in (layer.q, layer.k))
    out = dense_mining(q, k, heads(layer.v), mask > 0, over_keys=softmax == "key")
    correlation = (q @ k.transpose(-2, -1) / 0.1 * mask[:, None, None]).sum(-1).mean(1)
    got, got_correlation = layer(x, mask)
    assert_same(got, layer.o(out.transpose(1, 2).reshape(2, 12, 8)))
    assert_same(got_correlation, correlation / (mask.sum(1, keepdim=True) + 1e-9))


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_reduced_attention_equals_dense_attention_over_a_coarser_map(reduction: int) -> None:
    layer = ReducedAttention(8, heads=2, reduction=reduction).double()
    x = draw(2, 5 * 6, 8)
    source = x
    if reduction > 1:
        assert layer.reduce.stride == layer.reduce.kernel_size == (reduction, reduction)
        assert layer.norm.eps == 1e-6
        coarse = layer.reduce(x.transpose(1, 2).reshape(2, 8, 5, 6))
        source = layer.norm(coarse.flatten(2).transpose(1, 2))
    projected = (layer.q(x), layer.k(source), layer.v(source))
    q, k, v = (p.unflatten(2, (2, 4)).transpose(1, 2) for p in projected)
    attention = torch.softmax(q @ k.transpose(-2, -1) / (4**0.5 + 1e-9), dim=-1)
    expected = layer.o((attention @ v).transpose(1, 2).reshape(2, 30, 8))
    assert_same(layer(x, (5, 6)), expected)


# --- prior, prototype and Gram distance ---------------------------------------------------------


def direct_similarity(query: Tensor, support: Tensor, inside: Tensor) -> Tensor:
    """Return the max over ALL support positions of <s m, q> / (|s m| |q| + 1e-7)."""
    q, s = query.flatten(1).t(), (support * inside).flatten(1).t()  # [hw,C]
    norms = q.norm(dim=1)[:, None] * s.norm(dim=1)[None]
    return ((q @ s.t()) / (norms + 1e-7)).amax(1).view(query.shape[1:])


def inside_of(kind: str) -> Tensor:
    inside = torch.zeros(4, 5, dtype=torch.bool)
    if kind == "full":
        inside[:] = True
    elif kind == "partial":
        inside[1:3, 2:] = True
    elif kind == "all but one":
        inside[:] = True
        inside[2, 2] = False
    return inside


@pytest.mark.parametrize("kind", ["full", "partial", "all but one", "empty"])
@pytest.mark.parametrize("sign", [1, -1], ids=["alike", "all similarities negative"])
def test_max_similarity_equals_maximum_over_all_positions_of_the_masked_support(
    kind: str, sign: int
) -> None:
    query, support = draw(7, 4, 5).abs(), sign * draw(7, 4, 5).abs()
    inside = inside_of(kind)
    [got] = max_similarity(
        query[None], support[None][:, :, inside], masks_are_full=bool(inside.all())
    )
    assert_same(got, direct_similarity(query, support, inside))
    if sign < 0 and kind != "full":
        assert not got.any()  # the background counts as 0
    if sign < 0 and kind == "full":
        assert (got < 0).all()


def features(*shape: int) -> Features:
    return Features(*(draw(shape[0], c, *shape[1:]) for c in (6, 3, 7, 5)))


def by_query(supports: list[SupportFeatures], shot: int) -> list[list[SupportFeatures]]:
    return [supports[i : i + shot] for i in range(0, len(supports), shot)]


def test_prior_is_from_f5_then_f4_averaged_over_shots() -> None:
    query, support = features(2, 4, 5), features(6, 4, 5)
    kinds = ("partial", "empty", "full", "partial", "all but one", "partial")
    inside = torch.stack([inside_of(kind) for kind in kinds])
    got = training_free_prior(
        query, by_query(SupportFeatures.from_features(support, inside.long()), shot=3)
    )
    for b in range(2):
        for channel, name in enumerate(("f5", "f4")):
            q, s = getattr(query, name)[b], getattr(support, name)
            each = [direct_similarity(q, s[3 * b + j], inside[3 * b + j]) for j in range(3)]
            assert_same(got[b, channel], torch.stack(each).mean(0))


def test_gram_distance_is_between_each_query_and_each_of_its_shots() -> None:
    query, support = draw(2, 6, 4, 5), draw(6, 6, 4, 5)
    support[4] = 0  # an empty shot

    def gram(f: Tensor) -> Tensor:
        rows = [[torch.dot(a, b) / (a.norm() * b.norm() + 1e-7) for b in f] for a in f]
        return torch.stack([torch.stack(row) for row in rows])

    maps = Features(support, *features(6, 4, 5).maps()[1:])
    supports = by_query(SupportFeatures.from_features(maps, torch.ones(6, 4, 5)), shot=3)
    got = gram_distances(gram_matrix(query), supports)
    assert got.shape == (2, 3)
    for b in range(2):
        for j in range(3):
            difference = gram(query[b].flatten(1)) - gram(support[3 * b + j].flatten(1))
            assert_same(got[b, j], difference.square().sum().sqrt() / 6)


def test_clue_equals_the_direct_formulas() -> None:
    extractor = ClueExtractor((6, 3, 7)).double().eval()
    query, support = features(2, 5, 5), features(6, 5, 5)
    mask = torch.randint(0, 3, (2, 3, 17, 17))
    mask[mask == 2] = 255
    mask[1, 2] = 0

    soft = bilinear_ac((mask == 1).double().flatten(0, 1)[:, None], (5, 5))
    q = extractor.down_query(torch.cat((query.f3, query.f2), 1))
    s = extractor.down_supp(torch.cat((support.f3, support.f2), 1))
    each = (s * soft).sum((2, 3)) / (soft.sum((2, 3)) + 0.0005)
    prototype = each.view(2, 3, 256).mean(1)[:, :, None, None]
    cosine = (q * prototype).sum(1) / (q.norm(dim=1) * prototype.norm(dim=1)) / 0.1
    assert extractor.threshold == 0.7
    middle = cosine.flatten().sort().values[24:26]
    extractor.threshold = middle.mean().item()  # in the middle of random values, far from rounding
    supports = by_query(SupportFeatures.from_features(support, mask.flatten(0, 1)), shot=3)
    clue = extractor(QueryFeatures.from_features(query, (17, 17)), supports)
    assert_same(clue.initial_mask[:, 0], cosine * (cosine >= extractor.threshold))
    tokens = torch.cat((q, prototype.expand_as(q), clue.prior * 10), 1)
    assert_same(clue.tokens, extractor.query_merge(tokens))


def base_learner() -> BaseLearner:
    """Return one whose frozen batch norms do something."""
    base = BaseLearner(LITE0, 15).double().eval()
    for name, value in base.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
    return base


def test_folding_removes_frozen_batch_norms_and_keeps_the_features() -> None:
    base = base_learner()
    folded = fold_batch_norms(base)
    image = draw(1, 3, 65, 65)
    assert folded is not base
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        for got, expected in zip(
            folded.features(image).maps(), base.features(image).maps(), strict=True
        ):
            assert_same(got, expected)
    depthwise = [m for m in folded.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert max(m.padding[0] for m in depthwise) == 4  # 8 before folding
    base.backbone.train()
    assert fold_batch_norms(base) is base


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("grid", [(9, 9), (7, 11)])
def test_context_inside_equals_the_context_at_each_position_of_the_mask(
    frozen: bool, grid: tuple[int, int]
) -> None:
    base = base_learner()
    base = fold_batch_norms(base) if frozen else base
    f4 = draw(5, base.backbone.channels[-1], *grid)
    inside = torch.rand(5, *grid) < 0.3
    inside[0], inside[1] = True, False  # everything, nothing
    inside[2] = False
    inside[2, 0, 0] = inside[2, -1, -1] = inside[2, 0, -1] = True  # corners meet the padding
    got = base.context_inside(f4, inside)
    assert [len(part) for part in got] == [512] * 5
    assert got[1].shape == (512, 0)
    whole = plain.context(base, f4)
    for part, of_image, where in zip(got, whole, inside, strict=True):
        if where.any():
            assert_same(part, of_image[:, where])
