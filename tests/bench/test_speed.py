"""Options that make a run faster: refused where they do nothing, harmless where they do."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.small import BASE_CLASSES, balance_heads, config, encoded, episode_batch, images
from torch import Tensor, nn

from model import AMFormer
from model.backbones import LITE0
from model.device import as_on_accelerator
from util import speed
from util.bench import measure
from util.bench.__main__ import bench
from util.config import Config, load_config
from util.evaluate.metrics import argmax_channels
from util.features import encode
from util.runtime.cli import main
from util.runtime.distributed import Ranks
from util.runtime.errors import UserError
from util.train.adversarial import AdversarialTrainer, choose_parts

CPU = torch.device("cpu")


def options(**sections: dict) -> Config:
    cfg = config()
    changed = {n: replace(getattr(cfg, n), **values) for n, values in sections.items()}
    return replace(cfg, **changed)


def model() -> tuple[AMFormer, tuple[Tensor, ...]]:
    """A model that finds objects, and the episode in which it does."""
    torch.manual_seed(0)
    made, episode = AMFormer(LITE0, BASE_CLASSES, 1).eval(), images(2, 1)
    with torch.no_grad():
        for head in made.object_mining.heads:
            head[-1].weight *= 100
    balance_heads(made, *episode)
    return made, episode


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("Speed", {"tf32": True}, "Speed.tf32 has no effect on the CPU"),
        ("Speed", {"cudnn_benchmark": True}, "Speed.cudnn_benchmark has no effect on the CPU"),
        ("Train", {"precision": "fp16"}, "Train.precision fp16 is for GPUs"),
        ("Eval", {"precision": "fp16"}, "Eval.precision fp16 is for GPUs"),
    ],
)
def test_option_without_effect_on_this_device_is_refused(
    section: str, values: dict, told: str
) -> None:
    made = AMFormer(LITE0, BASE_CLASSES, 1)
    with pytest.raises(ValueError, match=told):
        speed.set_up(made, options(**{section: values}), CPU)


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_follows_the_config_in_both_stages(asked: bool) -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        backend.allow_tf32 = not asked
    speed.set_kernels(options(Speed={"tf32": asked}))
    assert [backend.allow_tf32 for backend in backends] == [asked, asked]
    speed.set_kernels(config())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--gpus 1", "GPUS 1: this machine has 0"),
        ("--repeat 0", "--repeat 0: give 1 or more"),
        ("Eval.precision=fp16 --size 65 --shot 1 --work warm", "Eval.precision fp16 is for GPUs"),
    ],
)
def test_wrong_bench_argument_is_one_line_and_status_2(
    words: str, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(measure, "operations", lambda *args: 1)
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        main(bench)
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and told in error and error.count("\n") == 1


def test_killed_bench_row_names_its_signal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    run = subprocess.run
    killed = ["sh", "-c", "kill -9 $$"]
    monkeypatch.setattr(measure, "operations", lambda *args: 1)
    monkeypatch.setattr(measure.subprocess, "run", lambda words, **kinds: run(killed, **kinds))
    monkeypatch.setattr(sys, "argv", ["bench", "--size", "65", "--shot", "1", "--work", "G"])
    with pytest.raises(SystemExit) as stopped:
        main(bench)
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "--work G --shot 1 --size 65: ended by signal 9" in error


def test_more_accumulation_parts_than_episodes_are_refused(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("Train:\n  batch_size: 4\n")
    wanted = "Train.accumulate wants at most Train.batch_size, 4, given 5"
    with pytest.raises(UserError, match=wanted):
        load_config(path, ["Train.accumulate=5"])


def test_every_enabled_option_is_logged() -> None:
    made = AMFormer(LITE0, BASE_CLASSES, 1)
    assert speed.set_up(made, config(), CPU) == []
    cfg = options(Speed={"channels_last": True}, Train={"precision": "bf16", "accumulate": 2})
    assert speed.set_up(made, cfg, CPU) == [
        "Speed.channels_last: True",
        "Train.precision: bf16",
        "Train.accumulate: 2",
    ]


def test_channels_last_changes_no_score_and_no_weight() -> None:
    made, episode = model()
    made.double()  # in float32, the hard masks' thresholds amplify rounding
    episode = [x.double() if x.is_floating_point() else x for x in episode]
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        expected = made(*episode)
        speed.set_up(made, options(Speed={"channels_last": True}), CPU)
        got = made(*episode)
    torch.testing.assert_close(got.final, expected.final)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def pyramid_and_gradients(made: AMFormer) -> dict[str, Tensor]:
    """Return the scales of the pyramid and the gradients of its weights."""
    g = made.object_mining
    scales = g.pyramid(torch.randn(2, 64, 9, 9, generator=torch.Generator().manual_seed(1)))
    sum(scale.cos().sum() for scale in scales).backward()
    found = {name: weight.grad.clone() for name, weight in g.pyramid.named_parameters()}
    made.zero_grad()
    return found | {f"scale {i}": scale.detach() for i, scale in enumerate(scales)}


@pytest.mark.slow  # compiling takes minutes
@pytest.mark.parametrize("part", ["pyramid", "encoder"])
def test_compiled_parts_compute_the_same_numbers(part: str) -> None:
    made, (query, *_) = model()

    def numbers() -> dict[str, Tensor]:
        return pyramid_and_gradients(made) if part == "pyramid" else vars(made.encoder(query))

    expected = numbers()
    speed.set_up(made, options(Speed={"compile": True}), CPU)
    got = numbers()
    for name, values in expected.items():
        # Measured: both differ from float64 by up to 2e-5 of the spread.
        torch.testing.assert_close(got[name], values, rtol=0, atol=1e-4 * values.std().item())


@pytest.mark.slow  # compiling takes minutes
def test_compiled_transformer_of_an_accelerator_has_the_same_loss_and_gradients() -> None:
    """In float32: inductor's backward pass fails in float64 on a CPU (torch 2.11)."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        made = AMFormer(LITE0, BASE_CLASSES, 1).train()
        for module in made.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0  # a graph draws other masks
        trainer = AdversarialTrainer(made, options(), 100, Ranks(0, 1, CPU))
        with as_on_accelerator():
            if compiled:
                speed.set_up(made, options(Speed={"compile": True}), CPU)
            loss = trainer.generator_step(encode(made.encoder, episode_batch(1)), weight=0.1)
        gradients = [p.grad.flatten() for p in made.parameters() if p.grad is not None]
        found.append((loss["loss_g"], torch.cat(gradients)))
    (loss, gradient), (expected, wanted) = found[1], found[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()


def test_bf16_returns_float32_scores_close_to_float32s() -> None:
    made, episode = model()
    with torch.no_grad():
        expected = made(*episode)
        with speed.autocast("bf16", CPU):
            got = made(*episode)
    for name in ("final", "foreground", "base_logits", "psi", "prior", "initial_mask"):
        assert getattr(got, name).dtype == torch.float32, name
    assert not torch.equal(got.final, expected.final)
    pairs = zip(got.scores, expected.scores, strict=True)
    agree = torch.stack([argmax_channels(a) == argmax_channels(b) for a, b in pairs]).float().mean()
    assert agree > 0.9


@pytest.mark.parametrize("player", ["G", "D"])
def test_bf16_step_is_finite_and_has_a_gradient_for_every_parameter(player: str) -> None:
    torch.manual_seed(0)
    made = AMFormer(LITE0, BASE_CLASSES, 1).train()
    trainer = AdversarialTrainer(made, options(Train={"precision": "bf16"}), 100, Ranks(0, 1, CPU))
    with trainer.autocast():
        batch = encoded(made, 1)
    if player == "G":
        result = trainer.generator_step(batch, weight=0.1)
    else:
        result = trainer.discriminator_step(batch, choose_parts(0, 1))
    assert all(v.dtype != torch.bfloat16 and v.isfinite() for v in result.values())
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert len(gradients) > 40 and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("player", ["G", "D"])
def test_accumulated_step_equals_the_step_on_the_whole_batch(player: str) -> None:
    steps = []
    for parts in (1, 2):
        torch.manual_seed(0)
        made = AMFormer(LITE0, BASE_CLASSES, 1).double().train()
        for module in made.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
        trainer = AdversarialTrainer(
            made, options(Train={"accumulate": parts}), 100, Ranks(0, 1, CPU)
        )
        batch = encode(made.encoder, episode_batch(1, dtype=torch.float64))
        batch.query_mask[0, :20] = 255  # the two episodes have different numbers of labeled pixels
        if player == "G":
            result = trainer.generator_step(batch, weight=0.1)
        else:
            result = trainer.discriminator_step(batch, choose_parts(0, 1))
        gradients = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
        steps.append(result | gradients)
    whole, split = steps
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        scale = max(value.abs().max().item(), 1e-6)
        assert (split[name] - value).abs().max().item() <= 1e-9 * scale, name
