"""The works that `util.bench` measures, and how: counted operations, time and memory."""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from model import AMFormer, build_model
from util import ROOT
from util.bench.counting import count
from util.config import Config, load_config
from util.config.schema import SpeedSection
from util.data.dataset import EpisodeBatch
from util.features import encode
from util.runtime import distributed, speed
from util.runtime.cost import resident_peak
from util.runtime.distributed import Ranks
from util.runtime.errors import UserError
from util.train.adversarial import AdversarialTrainer, choose_parts

COVERED, BATCH = 0.2, 2


def episodes(size: int, shot: int, batch: int, device: torch.device) -> EpisodeBatch:
    """Noise with a square object."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.zeros(size, size, dtype=torch.long)
    side = round(size * COVERED**0.5)
    mask[(size - side) // 2 :, (size - side) // 2 :][:side, :side] = 1
    return EpisodeBatch(
        query=torch.randn(batch, 3, size, size, generator=draw),
        query_mask=mask.repeat(batch, 1, 1),
        query_base_mask=3 * mask.repeat(batch, 1, 1),
        support=torch.randn(batch, shot, 3, size, size, generator=draw),
        support_mask=mask.repeat(batch, shot, 1, 1),
        class_index=torch.full((batch,), 2),
        plans=[],
    ).to(device)


def keep_all(logits: Tensor, base: Tensor, psi: Tensor) -> Tensor:
    """In place of the refinements' hard masks."""
    return torch.ones_like(logits[:, :1])


def prepare(
    work: str, cfg: Config, device: torch.device, plain: ModuleType | None
) -> Callable[[], object]:
    """The work as a function without arguments; `plain` is the module of the plain formulation."""
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    model.ensemble.hard_mask = keep_all
    speed.set_up(model, cfg, device)
    if work in ("cold", "warm"):
        return _evaluation(work, model.eval(), cfg, device, plain)
    batch = episodes(cfg.Data.size, cfg.Data.shot, BATCH, device)
    kind = plain.PlainGame if plain else AdversarialTrainer
    game = kind(model.train(), cfg, 100, Ranks(0, 1, device))

    def step() -> object:
        with game.autocast():
            seen = plain.encode(model, batch) if plain else encode(model.encoder, batch)
        return (
            game.generator_step(seen, weight=0.1)
            if work == "G"
            else game.discriminator_step(seen, choose_parts(0, 1))
        )

    return step


def _evaluation(
    work: str, model: AMFormer, cfg: Config, device: torch.device, plain: ModuleType | None
) -> Callable[[], object]:
    batch = episodes(cfg.Data.size, cfg.Data.shot, 1, device)
    images = batch.query, batch.support, batch.support_mask

    @torch.no_grad()
    def cold() -> object:
        with speed.autocast(cfg.Eval.precision, device):
            return plain.predict(model, *images) if plain else model(*images)

    if work == "cold" or plain:  # the plain formulation keeps nothing: its warm is its cold
        return cold
    with speed.autocast(cfg.Eval.precision, device):
        seen = encode(model.encoder, batch)

    @torch.no_grad()
    def warm() -> object:
        with speed.autocast(cfg.Eval.precision, device):
            return model.match(seen.query, seen.supports)

    return warm


def operations(work: str, cfg: Config, plain: ModuleType | None = None) -> int:
    """Counted operations of one run of the work, weights composed and folded beforehand.

    Options of precision and speed change none, so they are left out: the CPU lacks some.
    """
    train, evaluation = (replace(s, precision="fp32") for s in (cfg.Train, cfg.Eval))
    cfg = replace(cfg, Speed=SpeedSection(), Train=train, Eval=evaluation)
    run = prepare(work, cfg, torch.device("cpu"), plain)
    count(run)
    return count(run)


def load_plain() -> ModuleType:
    """model/amformer/plain.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("plain", ROOT / "model/amformer/plain.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain"] = module
    spec.loader.exec_module(module)
    return module


def seconds(runs: list[Callable[[], object]], repeat: int, device: torch.device) -> list[float]:
    """Median time of each run; they take turns, so that a disturbance meets all of them."""
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, times in zip(runs, taken, strict=True):
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in taken]


def peak_rate(device: torch.device) -> float:
    """Operations a second of the best of some large matrix products in float32 settings as set."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device)
    seconds([lambda: a @ a], 1, device)
    return 2 * n**3 / min(seconds([lambda: a @ a], 1, device)[0] for _ in range(5))


def peak_memory(run: Callable[[], object], device: torch.device, before: int) -> int:
    """Bytes at the peak: of the GPU's memory, or of this process beyond `before`."""
    run()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident_peak() - before


def measured(args: argparse.Namespace, *flags: str) -> dict:
    """A row's numbers, taken in a process of their own."""
    words = [sys.executable, "-m", "util.bench", "--row", *flags, "--gpus", str(args.gpus)]
    words += ["--repeat", str(args.repeat), "--config", str(args.config), *args.overrides]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        raise UserError(
            f"{' '.join(flags)}: signal {-done.returncode} ended it; where memory ran out, give a "
            "smaller --size or leave out --plain"
        )
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def row(args: argparse.Namespace) -> None:
    """What a process of its own measures: time (with --plain also the plain one), or memory."""
    before = resident_peak()
    device = distributed.init(args.gpus).device
    [work], cfg = args.work, config(args, args.size[0], args.shot[0])
    plain = load_plain() if args.plain else None
    if args.memory:
        print(
            json.dumps({"memory": peak_memory(prepare(work, cfg, device, plain), device, before)})
        )
        return
    runs = [prepare(work, cfg, device, which) for which in ((None, plain) if plain else (None,))]
    times = seconds(runs, args.repeat, device)
    print(json.dumps({"seconds": times, "rate": peak_rate(device)}))


def config(args: argparse.Namespace, size: int, shot: int):
    """The config of a row."""
    return load_config(args.config, [f"Data.size={size}", f"Data.shot={shot}", *args.overrides])


def table(args: argparse.Namespace) -> None:
    """Prints the rows as they come, as a table of Markdown.

    Raises:
        UserError: the machine lacks the GPU, or nothing is to be repeated.
    """
    distributed.check_gpus(args.gpus)
    if args.repeat < 1:
        raise UserError(f"--repeat {args.repeat}: give 1 or more")
    plain = load_plain() if args.plain else None
    names = ["GFLOP", *([] if args.count else ["s", "MB"])]
    heads = [h for n in names for h in ([n, "plain", "ratio"] if plain else [n])]
    heads += [] if args.count else ["floor s", "of the floor's rate"]
    print("| work | shot | px | " + " | ".join(heads) + " |")
    print("|" + " --- |" * (3 + len(heads)), flush=True)
    for size in args.size:
        for shot in args.shot:
            for work in args.work:
                cells = numbers(args, work, shot, size, plain)
                print(f"| {work} | {shot} | {size} | " + " | ".join(cells) + " |", flush=True)


def numbers(
    args: argparse.Namespace, work: str, shot: int, size: int, plain: ModuleType | None
) -> list[str]:
    """The cells of one row."""
    cfg = config(args, size, shot)
    sides = (None, plain) if plain else (None,)
    operations_ = [operations(work, cfg, side) for side in sides]
    cells = _cells([n / 1e9 for n in operations_], ".1f")
    if args.count:
        return cells
    which = ["--work", work, "--shot", str(shot), "--size", str(size)]
    timed = measured(args, *which, *(["--plain"] if plain else []))
    extra = [[], ["--plain"]] if plain else [[]]
    memory = [measured(args, *which, "--memory", *flags)["memory"] / 1e6 for flags in extra]
    floor = operations_[0] / timed["rate"]
    cells += _cells(timed["seconds"], ".3f") + _cells(memory, ".0f")
    return cells + [f"{floor:.3f}", f"{floor / timed['seconds'][0]:.2f}"]


def _cells(values: list[float], form: str) -> list[str]:
    ratio = [f"{values[0] / values[1]:.3f}"] if len(values) > 1 else []
    return [*(f"{value:{form}}" for value in values), *ratio]
