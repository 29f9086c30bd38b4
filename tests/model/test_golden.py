"""Numbers of the published code, with the same weights and episodes: evaluation and training.

The README of the golden files says how close a correct implementation comes. A tolerance here is at
most about ten times that, so it hides no mistake. In float32 no threshold is at risk: the nearest
value is 50 times the rounding error away from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from golden import golden
from helpers.small import Recorded
from torch import Tensor, nn

from model import AMFormer, Prediction
from model.amformer import losses
from model.amformer.detail_mining import DiscriminatorOutputs
from model.published import from_published, published_name
from util.config import Config
from util.data.dataset import EpisodeBatch
from util.features import EncodedBatch, encode
from util.runtime.distributed import Ranks
from util.train import adversarial

ARRAYS = {
    *("prior", "psi", "initial_mask", "mask1", "mask2", "final", "meta", "base"),
    *(
        f"{name}{i}"
        for name in ("query_scale", "correlation", "feature", "logits")
        for i in (0, 1, 2)
    ),
}
HARD_MASKS = ("mask1", "mask2")
AUX_WEIGHT2 = 1.3  # of the published code: multiplies the base learner's loss, which is constant
BASE_CLASSES = 15


@pytest.fixture(scope="module")
def evaluation_weights() -> dict[int, dict[str, Tensor]]:
    """Return K -> published state dict; a weight depends on its name only, so one draw suffices."""
    shapes = {shot: golden.published_shapes(shot) for shot in (1, 5)}
    state = golden.fill_state(shapes[5], seed=37)
    assert all(shapes[5][name] == shape for name, shape in shapes[1].items())
    return {5: state, 1: {name: state[name] for name in shapes[1]}}


# --- evaluation ---------------------------------------------------------------------------------


@dataclass
class Evaluation:
    model: AMFormer
    query: Tensor
    support: Tensor
    support_mask: Tensor
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=[1, 5], ids=["1-shot", "5-shot"])
def evaluation(request: pytest.FixtureRequest, evaluation_weights: dict) -> Evaluation:
    shot = request.param
    model = AMFormer("resnet50", BASE_CLASSES, shot)
    model.load_state_dict(from_published(evaluation_weights[shot]))
    name = {1: "public/eval", 5: "public/5shot"}[shot]
    episode = golden.episode(name, 2, shot, 129, BASE_CLASSES)
    if shot == 5:
        episode["support_mask"][0, 4] = 0  # a shot without an object
    expected = golden.arrays(f"pascal_resnet50_{shot}shot_eval")
    images = episode["query"], episode["support"], episode["support_mask"]
    return Evaluation(model.eval(), *images, expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 5e-5)], ids=["f64", "f32"]
)
def test_every_array_of_an_evaluation_equals_the_published_one(
    evaluation: Evaluation, dtype: torch.dtype, tolerance: float
) -> None:
    model = evaluation.model.to(dtype)
    with torch.no_grad():
        prediction = model(
            evaluation.query.to(dtype), evaluation.support.to(dtype), evaluation.support_mask
        )
    assert set(evaluation.expected) == ARRAYS
    wrong = {}
    for name, expected in evaluation.expected.items():
        got = getattr(prediction, "scores" if name == "final" else name)
        assert got.dtype == dtype and got.shape == expected.shape, name
        difference = np.abs(got.double().numpy() - expected)
        if name in HARD_MASKS:
            assert 0 < expected.mean() < 1  # else the comparison means nothing
            error, limit = (difference != 0).mean(), 1e-3
        else:
            error, limit = difference.max() / np.abs(expected).max(), tolerance
        if not error <= limit:
            wrong[name] = error
    assert not wrong


@pytest.mark.parametrize("shot", [1, 5])
def test_module_prefix_of_a_checkpoint_changes_no_weight(
    evaluation_weights: dict, shot: int
) -> None:
    state = evaluation_weights[shot]
    bare = from_published(state)
    prefixed = from_published({f"module.{name}": value for name, value in state.items()})
    assert prefixed.keys() == bare.keys()
    assert all(prefixed[name] is value for name, value in bare.items())


# --- training -----------------------------------------------------------------------------------


@dataclass
class Run:
    """Results of a training run, by published names.

    Attributes:
        losses: of each iteration.
        gradients: iteration -> {name: norm}.
        norms: of the parameters after the run.
        changes: norm of what the run changed.
    """

    losses: list[list[float]]
    gradients: dict[int, dict[str, float]]
    norms: dict[str, float]
    changes: dict[str, float]


@pytest.fixture(scope="module")
def published_run() -> dict[str, np.ndarray]:
    return golden.arrays("pascal_resnet50_1shot_train")


@pytest.fixture(scope="module")
def training_weights() -> dict[str, Tensor]:
    return from_published(golden.fill_state(golden.published_shapes(1), seed=6))


@pytest.fixture(scope="module")
def run64(published_run: dict, training_weights: dict) -> Run:
    return train(published_run, training_weights, torch.float64, range(12))


@pytest.fixture(scope="module")
def run32(published_run: dict, training_weights: dict) -> Run:
    return train(published_run, training_weights, torch.float32, range(2))


def train(
    published: dict[str, np.ndarray],
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    iterations: Iterable[int],
) -> Run:
    """Train as the golden run did: without dropout, with its choice of part maps."""
    model = AMFormer("resnet50", BASE_CLASSES, 1)
    model.load_state_dict(weights)
    model.to(dtype).train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    config = Config()
    config = replace(config, Train=replace(config.Train, lr=1e-5, aux_weight1=0.7, batch_size=2))
    trainer = adversarial.AdversarialTrainer(model, config, 40, Ranks(0, 1, torch.device("cpu")))
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    run = Run([], {}, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        chosen = torch.from_numpy(published["subsets"])
        patch.setattr(adversarial, "choose_parts", lambda _, iteration: chosen[iteration])
        judged, predicted = Recorded(trainer.discriminator_outputs), Recorded(trainer.predict)
        patch.setattr(trainer, "discriminator_outputs", judged)
        patch.setattr(trainer, "predict", predicted)
        for i in iterations:
            batch = encoded_episode(i, model, dtype)
            result = trainer.step(batch, iteration=i, in_epoch=i)
            recorded = predicted.results.pop(), judged.results.pop()
            terms = losses_of_both(trainer, result, *recorded, batch, chosen[i])
            terms["main_plus_aux"] = terms["main"] + terms["aux"]
            if i % 2 == 0:
                terms["backward"] = terms["loss_g"] + AUX_WEIGHT2 * terms["base"]
            else:
                terms["backward"] = terms["loss_d"]
            run.losses.append([float(terms[name]) for name in published["loss_names"]])
            run.gradients[i] = {
                published_name(name): parameter.grad.norm().item()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
    for name, value in model.named_parameters():
        run.norms[published_name(name)] = value.detach().norm().item()
        run.changes[published_name(name)] = (value - start[name]).norm().item()
    return run


def encoded_episode(iteration: int, model: AMFormer, dtype: torch.dtype) -> EncodedBatch:
    episode = golden.episode(f"public/train/{iteration}", 2, 1, 97, BASE_CLASSES)
    for name in ("query", "support"):
        episode[name] = episode[name].to(dtype)
    return encode(model.encoder, EpisodeBatch(**episode, plans=[]))


@torch.no_grad()
def losses_of_both(
    trainer: adversarial.AdversarialTrainer,
    result: dict[str, Tensor],
    prediction: Prediction,
    outputs: list[DiscriminatorOutputs],
    batch: EncodedBatch,
    chosen: Tensor,
) -> dict[str, Tensor]:
    """Return all losses of G and D before a step; those that the step computed are its own."""
    others = trainer.segmentation_losses(prediction, batch, trainer.count_labeled_pixels(batch)) | {
        "adversarial_g": losses.generator(outputs),
        "adversarial_d": losses.discriminator(outputs),
        "diversity": losses.diversity(outputs, chosen),
    }
    return others | result


def gradients_of(published: dict[str, np.ndarray], iteration: int) -> dict[str, float]:
    start = f"grad{iteration}/"
    pairs = zip(published["grad_names"].tolist(), published["grad_norms"].tolist(), strict=True)
    return {name.removeprefix(start): norm for name, norm in pairs if name.startswith(start)}


def largest_error(got: dict[str, float], expected: dict[str, float]) -> float:
    assert set(got) == set(expected)
    return max(abs(got[name] / norm - 1) for name, norm in expected.items())


def test_all_losses_of_twelve_iterations_equal_the_published_ones(
    run64: Run, published_run: dict
) -> None:
    assert len(published_run["loss_names"]) == 7
    np.testing.assert_allclose(run64.losses, published_run["losses"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("iteration", "count"), [(0, 298), (1, 42), (4, 298)])
def test_gradients_equal_the_published_ones_and_reach_only_the_network_of_the_step(
    run64: Run, published_run: dict, iteration: int, count: int
) -> None:
    expected = gradients_of(published_run, iteration)
    assert len(expected) == count
    assert largest_error(run64.gradients[iteration], expected) <= 1e-6


@pytest.mark.parametrize(("ours", "theirs"), [("norms", "param_norms"), ("changes", "param_delta")])
def test_twelve_iterations_move_every_parameter_as_published(
    run64: Run, published_run: dict, ours: str, theirs: str
) -> None:
    names = published_run["param_names"].tolist()
    expected = dict(zip(names, published_run[theirs].tolist(), strict=True))
    got = getattr(run64, ours)
    del expected["supp_merge.0.weight"]  # in no computation: a buffer here
    assert set(got) >= set(expected)
    if ours == "changes":
        still = {name for name, change in expected.items() if change == 0}
        assert still == {f"part.{level}.parts" for level in range(3)}
        assert all(got[name] == 0 for name in still)
        expected = {name: change for name, change in expected.items() if name not in still}
    assert max(abs(got[name] / value - 1) for name, value in expected.items()) <= 1e-6


def test_parameters_that_the_published_run_does_not_train_stay_unchanged(
    run64: Run, published_run: dict
) -> None:
    trained = set(published_run["param_names"].tolist())
    assert {
        name for name, change in run64.changes.items() if change and name not in trained
    } == set()


def test_first_two_iterations_equal_the_published_ones_in_float32(
    run32: Run, published_run: dict
) -> None:
    np.testing.assert_allclose(run32.losses, published_run["losses"][:2], rtol=6e-5, atol=0)
    for iteration in (0, 1):
        expected = gradients_of(published_run, iteration)
        assert largest_error(run32.gradients[iteration], expected) <= 2e-4
