"""The way of an accelerator, run on the CPU, computes what the CPU's own way does, in float64."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.small import SIZE, episode_batch
from torch import Tensor, nn

from model import AMFormer, System, build_model, device
from model.backbones import LITE0
from model.base_learner import Features
from model.device import as_on_accelerator, is_accelerator, scores_per_block
from model.prior import similarities
from model.query_support import SupportFeatures
from util.config import Config
from util.data.dataset import EpisodeBatch
from util.evaluate import metrics
from util.features import encode
from util.runtime.distributed import Ranks
from util.train.adversarial import choose_parts
from util.train.trainers import build_trainer

CPU = Ranks(0, 1, torch.device("cpu"))
SYSTEMS = ["amformer", "hdmnet", "bam", "pfenet"]
WAYS = [nullcontext, as_on_accelerator]


def built(name: str, shot: int, **method: object) -> tuple[System, Config]:
    torch.manual_seed(0)
    cfg = Config()
    cfg = replace(
        cfg,
        Method=replace(cfg.Method, name=name, backbone=LITE0, ppm_scales=(4.0, 2.0), **method),
        Data=replace(cfg.Data, shot=shot),
        Train=replace(cfg.Train, batch_size=3),
    )
    return build_model(cfg).double(), cfg


def batch(shot: int) -> EpisodeBatch:
    """Return three episodes: supports differ in size; one has no object, one nothing else."""
    torch.manual_seed(1)
    made = episode_batch(shot, 3, dtype=torch.float64)
    made.support_mask[1] = made.support_mask[1].roll(9, -1) * (torch.arange(SIZE) % 3 > 0)
    made.support_mask[2, 0] = 1
    if shot > 1:
        made.support_mask[2, 1] = 0
    return made


def assert_same(got: object, wanted: object, name: str) -> None:
    if isinstance(wanted, list):
        for index, pair in enumerate(zip(got, wanted, strict=True)):
            assert_same(*pair, f"{name}[{index}]")
    elif isinstance(wanted, Tensor):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_both_ways_give_the_same_maps(name: str, shot: int) -> None:
    model, given = built(name, shot)[0].eval(), batch(shot)
    images = given.query, given.support, given.support_mask
    found = []
    for way in WAYS:
        with way():
            whole = model(*images)
            stored = model.encoder.query(images[0]), model.encoder.supports(*images[1:])
            found.append((whole, model.match(*stored)))
    wanted = found[0][0]
    for got in (found[0][1], *found[1]):
        for field, value in vars(wanted).items():
            if vars(got)[field] is not None:  # maps that only the whole way shows
                assert_same(vars(got)[field], value, field)


@pytest.mark.parametrize("base_map", ["all", "unshown"])
@pytest.mark.parametrize("network", ["G", "D"])
def test_both_ways_take_the_same_step_of_amformer(network: str, base_map: str) -> None:
    steps = []
    for way in WAYS:
        model, cfg = built("amformer", 2, base_map=base_map)
        assert isinstance(model, AMFormer)
        trainer = build_trainer(model.train(), cfg, 100, CPU)
        torch.manual_seed(3)  # dropout draws the same
        with way():
            encoded = encode(model.encoder, batch(2))
            if network == "G":
                losses = trainer.generator_step(encoded, weight=0.1)
            else:
                losses = trainer.discriminator_step(encoded, choose_parts(0, 1))
        steps.append((losses, model.state_dict()))
    for name, value in (steps[0][0] | steps[0][1]).items():
        assert_same((steps[1][0] | steps[1][1])[name], value, name)


@pytest.mark.parametrize("name", ["hdmnet", "bam", "pfenet"])
def test_both_ways_take_the_same_step_of_other_systems(name: str) -> None:
    steps = []
    for way in WAYS:
        model, cfg = built(name, 2)
        trainer = build_trainer(model.train(), cfg, 100, CPU)
        torch.manual_seed(3)
        with way():
            losses = trainer.step(encode(model.encoder, batch(2)), 0, 0)
        steps.append((losses, model.state_dict()))
    for key, value in (steps[0][0] | steps[0][1]).items():
        assert_same((steps[1][0] | steps[1][1])[key], value, key)


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("amformer", True),
        pytest.param("amformer", False, marks=pytest.mark.slow),  # tracing takes its time
        pytest.param("hdmnet", True, marks=pytest.mark.slow),
        pytest.param("hdmnet", False, marks=pytest.mark.slow),
    ],
)
def test_encoder_and_transformer_are_one_graph_each_for_a_compiler(
    name: str, training: bool
) -> None:
    """Nothing in them depends on values, so that the graphs could be recorded and replayed."""
    compiler = partial(torch.compile, dynamic=False, fullgraph=True, backend="aot_eager")
    found = []
    for compiled in (False, True):
        model, cfg = built(name, 1)
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0  # a graph draws other masks
        trainer, given = build_trainer(model.train(training), cfg, 100, CPU), batch(1)
        with as_on_accelerator():
            if compiled:
                model.compile_with(compiler)
            if training:
                losses = trainer.step(encode(model.encoder, given), 0, 0)
                found.append(losses | model.state_dict())
            else:
                with torch.no_grad():
                    images = given.query, given.support, given.support_mask
                    found.append({"final": model(*images).final})
    for key, value in found[0].items():
        assert_same(found[1][key], value, key)


@pytest.mark.parametrize("sign", [1, -1])
def test_padding_of_shorter_supports_is_never_the_most_similar(sign: int) -> None:
    torch.manual_seed(0)
    query = torch.rand(3, 7, 4, 5).double()
    masks = torch.rand(3, 4, 5) < torch.tensor([0.9, 0.3, 0.0])[:, None, None]
    masks[0] = True
    maps = sign * torch.rand(3, 7, 4, 5).double()
    features = Features(maps, maps, maps, maps)
    supports = [[s] for s in SupportFeatures.from_features(features, masks.long())]
    shots = [[shot.f5 for shot in episode] for episode in supports]
    wanted = similarities(query, shots, supports)
    with as_on_accelerator():
        assert_same(similarities(query, shots, supports), wanted, "similarities")
    assert bool((wanted[0] < 0).all()) == (sign < 0) and not wanted[2].any()


def test_counting_by_comparison_equals_bincount() -> None:
    cells = torch.randint(0, 7, (5, 6))
    wanted = metrics.histogram(cells, 4)
    with as_on_accelerator():
        assert metrics.histogram(cells, 4).equal(wanted)
        assert metrics.histogram(cells, 40).equal(torch.bincount(cells.flatten(), minlength=40))
    assert wanted.equal(torch.bincount(cells.flatten(), minlength=7)[:4])


def test_the_way_is_that_of_the_device_unless_it_is_asked_for() -> None:
    on_cpu, elsewhere = torch.empty(2), torch.empty(2, device="meta")
    assert not is_accelerator(on_cpu) and is_accelerator(elsewhere)
    assert scores_per_block(on_cpu) < scores_per_block(elsewhere)
    with as_on_accelerator():
        assert is_accelerator(on_cpu)
        assert scores_per_block(on_cpu) == scores_per_block(elsewhere)
    assert not is_accelerator(on_cpu)


def test_blocks_take_a_part_of_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        total_memory = 64 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: Gpu())

    class OnGpu:
        device = torch.device("cuda")

        @staticmethod
        def element_size() -> int:
            return 4

    assert device.scores_per_block(OnGpu()) == (1 << 30) // 4
