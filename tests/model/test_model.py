"""Behavior of the model beyond the golden numbers: inference, training, dropout, frozen parts."""

from collections.abc import Callable

import pytest
import torch
from helpers.small import (
    BASE_CLASSES,
    GRID,
    SIZE,
    Recorded,
    all_finite,
    config,
    encoded,
    images,
    trainer_of,
)
from torch import Tensor, nn

from model import AMFormer, UserError, build_model
from model.backbones import LITE0
from util.train.adversarial import choose_parts

DROPOUTS = (nn.modules.dropout._DropoutNd, nn.AlphaDropout)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# --- inference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shot", [1, 2, 5])
def test_inference_needs_images_and_support_masks_only(shot: int) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, shot).eval()
    with torch.no_grad():
        got = model(*images(2, shot))
    assert got.scores.shape == got.meta.shape == (2, 2, SIZE, SIZE)
    assert got.base.shape == (2, BASE_CLASSES + 1, SIZE, SIZE)
    assert got.psi.shape == (2,) and got.prior.shape == (2, 2, GRID, GRID)
    assert all_finite(got)


def test_query_gives_the_same_scores_alone_and_in_a_batch() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 2).eval().double()
    query, support, mask = images(3, 2)
    query, support = query.double(), support.double()
    with torch.no_grad():
        batched = model(query, support, mask)
        alone = model(query[1:2], support[1:2], mask[1:2])
    torch.testing.assert_close(batched.scores[1:2], alone.scores, rtol=1e-9, atol=1e-12)


def test_float64_inputs_give_float64_results() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1).eval().double()
    query, support, mask = images(1, 1)
    with torch.no_grad():
        got = model(query.double(), support.double(), mask)
    kinds = {v.dtype for v in vars(got).values() if isinstance(v, Tensor)}
    kinds |= {m.dtype for v in vars(got).values() if isinstance(v, list) for m in v}
    assert kinds == {torch.float64} and got.scores.dtype == torch.float64


@pytest.mark.parametrize("given", [1, 3])
def test_wrong_number_of_supports_is_refused(given: int) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 2).eval()
    with pytest.raises(UserError, match=f"built for 2 supports per query and got {given}"):
        model(*images(1, given))


@pytest.mark.parametrize("softmax", ["query", "key"])
@pytest.mark.parametrize("empty", ["initial mask", "support mask", "both"])
def test_empty_masks_give_finite_output_and_gradients(empty: str, softmax: str) -> None:
    threshold = 0.7 if empty == "support mask" else 11.0  # cos / 0.1 is at most 10
    model = AMFormer(
        LITE0, BASE_CLASSES, 1, mask_threshold=threshold, mining_softmax=softmax
    ).train()
    batch = encoded(model, 1, empty=empty != "initial mask")
    trainer = trainer_of(model)
    trainer.predict = Recorded(trainer.predict)
    result = trainer.generator_step(batch, weight=0.1)
    [prediction] = trainer.predict.results
    if empty != "support mask":
        assert not prediction.initial_mask.any()
    if empty != "initial mask":
        assert not prediction.prior.any()
    assert all_finite(prediction)
    assert all(value.isfinite() for value in result.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(p.isfinite().all() for p in model.parameters())


def test_prediction_has_the_names_of_the_golden_files_and_no_others() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1).eval()
    with torch.no_grad():
        got = model(*images(1, 1))
    assert got.logits0 is got.logits[0] and got.query_scale2 is got.query_scales[2]
    assert got.mask1 is got.masks[0] and got.mask2 is got.masks[1]
    for name in ("nonsense", "logitsx", "nonsense1"):
        assert not hasattr(got, name)


def test_every_method_key_reaches_the_model() -> None:
    made = build_model(
        config(
            fix_bn=False,
            base_dropout=False,
            mask_threshold=1.5,
            mining_softmax="key",
            discriminator_sigmoid=False,
        )
    )
    assert (made.fix_bn, made.encoder.keep_dropout, made.clue.threshold) == (False, False, 1.5)
    mining = [*made.object_mining.mining, *made.object_mining.refine_mining]
    assert {step.layer.attention.softmax for step in mining} == {"key"}
    assert not any(isinstance(m, nn.Sigmoid) for m in made.detail_mining.modules())
    assert made.shot == 1 and made.encoder.base.classifier.out_channels == BASE_CLASSES + 1


# --- training steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [False, True], ids=["as published", "all trained"])
def test_5_shot_step_of_g_or_d_changes_only_its_own_parameters(switches: bool) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 5).train()
    trainer = trainer_of(model, train_parts=switches, train_kshot=switches)
    trainer.predict = Recorded(trainer.predict)
    batch = encoded(model, 5)
    for network, of_d in (("G", False), ("D", True)):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        if network == "G":
            result = trainer.generator_step(batch, weight=0.1)
        else:
            result = trainer.discriminator_step(batch, choose_parts(0, 1))
        assert all(value.isfinite() for value in result.values())
        assert all_finite(trainer.predict.results[-1])
        for name, p in model.named_parameters():
            own = p.requires_grad and name.startswith("detail_mining.") == of_d
            assert (p.grad is not None) == own, name
            if own:
                assert p.grad.isfinite().all() and not torch.equal(p, before[name]), name
            else:
                assert torch.equal(p, before[name]), name


def test_every_parameter_of_g_gets_a_nonzero_gradient() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 5, mask_threshold=-10.0).train()
    with torch.no_grad():  # initially these two ignore psi and the base learner
        model.ensemble.gram_merge.weight += 0.1
        model.ensemble.cls_merge.weight += 0.1
        model.ensemble.kshot[0].bias += 1.0  # else its ReLU may give 0
        for head in model.object_mining.heads:  # so that the masks of the refinements are not empty
            head[-1].bias[1] += 1.0
    trainer = trainer_of(model, train_kshot=True)
    trainer.predict = Recorded(trainer.predict)
    trainer.generator_step(encoded(model, 5), weight=0.1)
    assert all(mask.any() for mask in trainer.predict.results[0].masks)
    without_gradient = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith("detail_mining.") and not p.grad.any()
    ]
    assert without_gradient == []


# --- dropout (methods 1, 2, 3 and 5) ------------------------------------------------------------

DROPOUT_TABLE = {
    "encoder.base.dropout": (nn.Dropout2d, 0.1),
    "clue.down_query.2": (nn.Dropout2d, 0.5),
    "clue.down_supp.2": (nn.Dropout2d, 0.5),
    **{
        f"object_mining.pyramid.{stage}.layers.{layer}.{place}": (nn.Dropout, 0.1)
        for stage in range(3)
        for layer in range(2)
        for place in ("dropout", "ffn.dropout")
    },
    **{
        f"object_mining.{steps}.layer.{place}": (nn.Dropout, 0.1)
        for steps in ("mining.0", "mining.1", "mining.2", "refine_mining.0", "refine_mining.1")
        for place in ("dropout", "ffn.dropout")
    },
    **{f"detail_mining.attention.{level}.dropout": (nn.Dropout, 0.1) for level in range(3)},
}


def dropouts(model: AMFormer) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DROPOUTS)}


@pytest.mark.parametrize("backbone", ["resnet50", LITE0])
def test_dropout_has_the_published_rates(backbone: str) -> None:
    with torch.device("meta"):
        model = AMFormer(backbone, BASE_CLASSES, 5)
    got = {name: (type(m), m.p) for name, m in dropouts(model).items()}
    assert got == DROPOUT_TABLE


def test_dropout_acts_at_the_published_places() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1).train()
    trainer = trainer_of(model)
    batch = encoded(model, 1)
    seen: dict[str, list[Tensor]] = {name: [] for name in DROPOUT_TABLE}
    for name, module in dropouts(model).items():
        module.register_forward_hook(lambda _, given, out, name=name: seen[name].append(given[0]))
    trainer.generator_step(batch, weight=0.1)

    def shapes(name: str) -> list[tuple[int, ...]]:
        return [tuple(x.shape) for x in seen[name]]

    cells = GRID * GRID
    assert shapes("encoder.base.dropout") == [(2, 512, GRID, GRID)]
    inside = max(
        len(shots[0].weight) for shots in batch.supports
    )  # only these positions are computed
    for side, positions in (("query", (GRID, GRID)), ("supp", (inside, 1))):
        assert shapes(f"clue.down_{side}.2") == [(2, 256, *positions)]
        assert (seen[f"clue.down_{side}.2"][0] >= 0).all()  # after the ReLU
    for name in DROPOUT_TABLE:
        if not name.startswith("object_mining."):
            continue
        stage = name.split(".")[1:3]
        if stage[0] == "pyramid":
            tokens = (GRID, 5, 3)[int(stage[1])] ** 2  # fine to coarse
        elif stage[0] == "mining":
            tokens = (3, 5, GRID)[int(stage[1])] ** 2  # coarse to fine
        else:
            tokens = cells
        if name.endswith(".ffn.dropout"):  # after the GELU, and at the end
            assert shapes(name) == [(2, tokens, 256), (2, tokens, 64)], name
            assert seen[name][0].min() > -0.2  # GELU's minimum is -0.17
        else:  # after the attention
            assert shapes(name) == [(2, tokens, 64)], name
    for level in range(3):
        name = f"detail_mining.attention.{level}.dropout"
        # The fake and the real mask of both episodes are one batch.
        assert shapes(name) == [(4, 4, 14, cells), (4, 14, 64), (4, 14, 192), (4, 14, 64)]
        attention, _, hidden, _ = seen[name]
        torch.testing.assert_close(attention.sum(-1), torch.ones(4, 4, 14))  # over ALL tokens
        assert (hidden >= 0).all()  # after the ReLU


# --- frozen parts, options ----------------------------------------------------------------------


def test_encoder_gives_no_gradient_and_its_batch_norms_never_change() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1, fix_bn=False).train()
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    image = torch.randn(2, 3, SIZE, SIZE, requires_grad=True)
    features = model.encoder(image)
    assert not any(f.requires_grad for f in features.maps())
    assert not model.encoder.base_logits(features).requires_grad
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(torch.equal(before[n], v) for n, v in model.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("base_dropout", "training", "random"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_base_dropout_acts_only_in_training_and_only_if_configured(
    base_dropout: bool, training: bool, random: bool
) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1, base_dropout=base_dropout).train(training)
    assert model.encoder.training == training
    first, second = (model.encoder(torch.ones(1, 3, SIZE, SIZE)) for _ in range(2))
    torch.testing.assert_close(first.maps(), second.maps())
    logits = [model.encoder.base_logits(first) for _ in range(4)]
    assert all(torch.allclose(logits[0], other) for other in logits[1:]) != random


def test_support_is_multiplied_by_its_mask_before_the_backbone() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1).eval()
    image, mask = torch.randn(1, 3, SIZE, SIZE), images(1, 1)[2][:, 0]
    assert {0, 1, 255} == set(mask.unique().tolist())
    inside = image * (mask == 1)[:, None]
    (([got],), ([expected],)) = (
        model.encoder.supports(x[None], mask[None]) for x in (image, inside)
    )
    torch.testing.assert_close(got.tensors(), expected.tensors())


@pytest.mark.parametrize("fix_bn", [True, False])
def test_new_batch_norms_train_unless_fix_bn(fix_bn: bool) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1, fix_bn=fix_bn).eval().train()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("encoder.")
    }
    assert len(norms) == 5 + 3 * 3 + 2 * 3 + 3 * 2  # ConvModules, parses, refinements, heads
    assert {m.training for m in norms.values()} == {not fix_bn}
    trainer_of(model).generator_step(encoded(model, 1), weight=0.1)
    moved = {name for name, module in norms.items() if module.running_mean.any()}
    assert moved == (set() if fix_bn else set(norms))
    assert not any(m.training for m in model.eval().modules())


def test_compile_with_sends_encoder_and_pyramid_through_the_compiler() -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1).eval().double()
    query, support, mask = images(1, 1)
    episode = query.double(), support.double(), mask
    compiled, calls = [], []

    def compiler(function: Callable) -> Callable:
        compiled.append(function)

        def run(*args: Tensor) -> object:
            calls.append(function)
            return function(*args)

        return run

    with torch.no_grad():
        expected, names = model(*episode), list(model.state_dict())
        model.compile_with(compiler)
        got = model(*episode)
    assert list(model.state_dict()) == names
    assert len(compiled) == len(calls) == 3  # maps of the query, of the support, the pyramid
    assert set(compiled) == set(calls)
    torch.testing.assert_close(got.final, expected.final)
