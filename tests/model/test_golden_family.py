"""Numbers of the published BAM, HDMNet and PFENet: evaluation and training.

As in `test_golden.py`, a tolerance hides no mistake: the README of the golden files says how close
a correct implementation comes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from golden import golden
from torch import Tensor, nn

from model import System, build_model
from model.published import from_published, published_name, to_published
from util.config import Config
from util.data.dataset import EpisodeBatch
from util.features import encode
from util.runtime.distributed import Ranks
from util.train.supervised import SupervisedTrainer

BASE_CLASSES, CPU = 15, Ranks(0, 1, torch.device("cpu"))
AUX_WEIGHT2 = 1.3  # of the published code: multiplies the base learner's loss, which is constant
EPISODES = {1: "public/eval", 5: "public/5shot"}
TRAINING = {1: ("public/train", range(8)), 5: ("public/train5", range(4))}
CASES = [("bam", 1), ("bam", 5), ("hdmnet", 1), ("hdmnet", 5), ("pfenet", 1), ("pfenet", 5)]
RUNS = [("bam", 1, "train"), ("bam", 5, "train"), ("hdmnet", 1, "train")]
RUNS += [("hdmnet", 5, "train"), ("pfenet", 1, "train"), ("pfenet", 1, "train_bn")]
SEEDS = {"bam": 8, "hdmnet": 96, "pfenet": 0}
RATES = {"bam": 5e-4, "hdmnet": 1e-5, "pfenet": 1e-4}
DECAY = {"bam": 1e-4, "hdmnet": 0.01, "pfenet": 1e-4}
SHARES = (1.0, 0.5, 0.25, 0.125)  # ppm_scales of all files but one
WHOLE = {"prototype", "prior", "prior_shots", "distances", "shot_weights", "psi", "final", "meta"}
WHOLE |= {f"correlation{i}" for i in range(3)}
WHOLE |= {"logits", "base_logits", "base_map", "foreground", "background"}


@cache
def weights(system: str, shot: int) -> dict[str, Tensor]:
    """Return the weights of a golden file, under published names."""
    shots = "" if system == "pfenet" else f"_{shot}shot"
    shapes = json.loads((golden.GOLDEN / f"{system}_shapes_resnet50{shots}.json").read_text())
    return golden.fill_state(shapes, seed=SEEDS[system])


def config(system: str, shot: int, **method: object) -> Config:
    """Return the config of the golden runs, with these keys of `Method`."""
    made = Config()
    return replace(
        made,
        Method=replace(made.Method, name=system, **method),
        Data=replace(made.Data, shot=shot),
        Train=replace(
            made.Train, lr=RATES[system], aux_weight1=0.7, batch_size=2, weight_decay=DECAY[system]
        ),
    )


def built(system: str, shot: int, **method: object) -> System:
    """Return a system with the weights of a golden file."""
    model = build_model(config(system, shot, **method))
    model.load_state_dict(from_published(weights(system, shot), system=system))
    return model


def episode(name: str, shot: int, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a golden episode; of five shots, one has no object."""
    drawn = golden.episode(name, 2, shot, size, BASE_CLASSES)
    if shot == 5:
        drawn["support_mask"][0, 4] = 0
    return drawn | {key: drawn[key].to(dtype) for key in ("query", "support")}


@pytest.mark.parametrize(("system", "shot"), CASES)
def test_published_names_of_a_system_survive_a_round_trip(system: str, shot: int) -> None:
    state = weights(system, shot)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    back = to_published(from_published(prefixed, system=system), system=system)
    assert back.keys() == state.keys() and all(back[name] is state[name] for name in state)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize(("system", "shot"), CASES)
def test_every_array_of_an_evaluation_equals_the_published_one(
    system: str, shot: int, dtype: torch.dtype, tolerance: float
) -> None:
    expected = golden.arrays(f"{system}_resnet50_{shot}shot_eval")
    drawn = episode(EPISODES[shot], shot, 129, dtype)
    scales = {"ppm_scales": SHARES} if (system, shot) == ("pfenet", 5) else {}
    model = built(system, shot, **scales).eval().to(dtype)
    with torch.no_grad():
        prediction = model(drawn["query"], drawn["support"], drawn["support_mask"])
    wrong = {}
    for name, array in expected.items():
        got = getattr(prediction, "scores" if name == "final" else name)
        assert got.dtype == dtype, name
        error = np.abs(thinned(name, got, array.shape).double().numpy() - array).max()
        if not error <= tolerance * np.abs(array).max():
            wrong[name] = error / np.abs(array).max()
    assert not wrong


def thinned(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what the file holds of an array: every n-th channel, or every fourth pixel."""
    if name == "base":
        value = value[..., ::4, ::4]
    elif name not in WHOLE:
        axis = value.dim() - 3
        step = value.shape[axis] // shape[axis]
        value = value.movedim(axis, 0)[::step].movedim(0, axis)
    assert value.shape == shape, name
    return value


# --- training -----------------------------------------------------------------------------------


@dataclass
class Run:
    """A training run as the golden ones, by published names; see `test_golden.Run`."""

    published: dict[str, np.ndarray]
    losses: list[list[float]]
    rates: list[list[float]]  # of the first and the last group
    gradients: dict[str, float]  # as "grad0/NAME"
    norms: dict[str, float]
    changes: dict[str, float]
    buffers: dict[str, tuple[float, float]]  # norm of the change, norm


@pytest.fixture(scope="module", params=RUNS, ids=["-".join(map(str, c)) for c in RUNS])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Train in float64 without dropout, as the golden runs did."""
    system, shot, kind = request.param
    name, iterations = TRAINING[shot]
    published = golden.arrays(f"{system}_resnet50_{shot}shot_{kind}")
    own = {"ppm_scales": SHARES, "train_backbone_norms": kind == "train_bn"}
    model = built(system, shot, **(own if system == "pfenet" else {})).double().train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    trainer = SupervisedTrainer(model, config(system, shot), 40, CPU)
    trained = {published_name(n, system): p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    made = Run(published, [], [], {}, {}, {}, {})
    for i in iterations:
        batch = episode(f"{name}/{i}", shot, 97, torch.float64)
        losses = trainer.step(encode(model.encoder, EpisodeBatch(**batch, plans=[])), i, i)
        losses["main_plus_meta"] = losses["main"] + losses.get("meta", 0)
        losses["backward"] = losses["loss"] + AUX_WEIGHT2 * losses.get("base", 0)
        made.losses.append([float(losses[n]) for n in published["loss_names"]])
        made.rates.append([group["lr"] for group in trainer.main_optimizer.param_groups])
        made.gradients |= {f"grad{i}/{n}": p.grad.norm().item() for n, p in trained.items()}
    made.norms = {n: p.detach().norm().item() for n, p in trained.items()}
    made.changes = {n: (p.detach() - start[n]).norm().item() for n, p in trained.items()}
    for n, buffer in model.named_buffers():
        change = (buffer - buffers[n]).double().norm().item()
        made.buffers[published_name(n, system)] = change, buffer.double().norm().item()
    yield made


def assert_equal(got: dict[str, float], names: list[str], values: np.ndarray) -> None:
    errors = [abs(got[name] / value - 1) for name, value in zip(names, values, strict=True)]
    assert max(errors) <= 1e-6


def test_losses_and_rates_of_a_run_equal_the_published_ones(run: Run) -> None:
    np.testing.assert_allclose(run.losses, run.published["losses"], rtol=1e-6, atol=0)
    rates = np.sort(run.published["lrs"], axis=1)
    np.testing.assert_allclose([(min(r), max(r)) for r in run.rates], rates, rtol=1e-12)


def test_gradients_of_a_run_equal_the_published_ones(run: Run) -> None:
    pairs = zip(run.published["grad_names"].tolist(), run.published["grad_norms"], strict=True)
    expected = {name: norm for name, norm in pairs if name.partition("/")[2] in run.changes}
    assert {name.partition("/")[2] for name in expected} == set(run.changes)
    assert_equal(run.gradients, list(expected), np.array(list(expected.values())))


def test_a_run_trains_the_published_parameters_as_published(run: Run) -> None:
    moved = run.published["param_delta"] != 0  # HDMNet's K-shot weights are in no optimizer
    names = run.published["param_names"][moved].tolist()
    assert set(run.changes) == set(names)
    assert_equal(run.norms, names, run.published["param_norms"][moved])
    assert_equal(run.changes, names, run.published["param_delta"][moved])


def test_batch_norms_track_statistics_only_where_the_published_ones_do(run: Run) -> None:
    if "buffer_names" not in run.published:
        assert not any(change for change, _ in run.buffers.values())
        return
    names = run.published["buffer_names"].tolist()
    changes = {name: change for name, (change, _) in run.buffers.items()}
    norms = {name: norm for name, (_, norm) in run.buffers.items()}
    assert_equal(changes, names, run.published["buffer_delta"])
    assert_equal(norms, names, run.published["buffer_norms"])
