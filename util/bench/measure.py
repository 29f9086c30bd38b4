"""Measure the work that `python -m util.bench` lists: counted operations, time and memory."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.utils.benchmark import Timer, timer

from model import AMFormer, System, build_model
from model.amformer.plain import predict as plain_predict
from model.backbones import TRIAL_SIZE
from util import ROOT, speed
from util.bench.counting import Launches, count, launches
from util.bench.plain_training import PlainAdversarialTrainer
from util.bench.plain_training import encode as plain_encode
from util.config import Config, load_config
from util.config.schema import SpeedSection
from util.data.dataset import EpisodeBatch
from util.features import encode
from util.runtime import distributed
from util.runtime.distributed import Ranks
from util.runtime.errors import UserError
from util.runtime.log import log
from util.runtime.system import resident_peak
from util.train.adversarial import AdversarialTrainer, choose_parts
from util.train.supervised import SupervisedTrainer

OBJECT_SHARE = 0.2  # of an image; 0.13 to 0.22 on average in PASCAL's validation lists
BATCH_SIZE = 2  # episodes in a training step
LAUNCH_BATCHES = (1, 8)  # episodes at a time, for counting launches


def episodes(size: tuple[int, int], shot: int, batch: int, device: torch.device) -> EpisodeBatch:
    """Return noise images of a height and width with an object in the middle, of their shape."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.zeros(size, dtype=torch.long)
    height, width = (round(side * OBJECT_SHARE**0.5) for side in size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    mask[top : top + height, left : left + width] = 1
    return EpisodeBatch(
        query=torch.randn(batch, 3, *size, generator=draw),
        query_mask=mask.repeat(batch, 1, 1),
        query_base_mask=3 * mask.repeat(batch, 1, 1),
        support=torch.randn(batch, shot, 3, *size, generator=draw),
        support_mask=mask.repeat(batch, shot, 1, 1),
        class_index=torch.full((batch,), 2),
        plans=[],
    ).to(device)


def prepare(
    work: str, cfg: Config, device: torch.device, plain: bool = False, batch: int | None = None
) -> Callable[[], object]:
    """Return the work as a function without arguments; `plain`: on the plain formulation.

    `batch` is the number of episodes, by default one in evaluation and `BATCH_SIZE` in training.
    """
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    if isinstance(model, AMFormer):
        model.ensemble.keep_every_position = True
    elif plain or work == "D":
        what = "--plain" if plain else "--work D"
        raise UserError(f"{what}: is of Method.name amformer only, not {cfg.Method.name}")
    speed.set_up(model, cfg, device)
    model.encoder(torch.zeros(1, 3, TRIAL_SIZE, TRIAL_SIZE, device=device))  # folds batch norms
    if work in ("G", "D"):
        model.train()
        return _training(work, model, cfg, device, plain, batch or BATCH_SIZE)
    return _evaluation(work, model.eval(), cfg, device, plain, batch or 1)


def _training(
    work: str, model: System, cfg: Config, device: torch.device, plain: bool, count: int
) -> Callable[[], object]:
    batch = episodes(cfg.sizes["Data.size"], cfg.Data.shot, count, device)
    ranks = Ranks(0, 1, device)
    if not isinstance(model, AMFormer):
        return _supervised(SupervisedTrainer(model, cfg, 100, ranks), batch)
    kind = PlainAdversarialTrainer if plain else AdversarialTrainer
    trainer = kind(model, cfg, 100, ranks)

    def step() -> object:
        with trainer.autocast():
            encoded = plain_encode(model, batch) if plain else encode(model.encoder, batch)
        if work == "G":
            return trainer.generator_step(encoded, weight=0.1)
        return trainer.discriminator_step(encoded, choose_parts(0, 1))

    return step


def _supervised(trainer: SupervisedTrainer, batch: EpisodeBatch) -> Callable[[], object]:
    def step() -> object:
        with trainer.autocast():
            encoded = encode(trainer.model.encoder, batch)
        return trainer.step(encoded, 0, 0)

    return step


def _evaluation(
    work: str, model: System, cfg: Config, device: torch.device, plain: bool, count: int
) -> Callable[[], object]:
    batch = episodes(cfg.sizes["Data.size"], cfg.Data.shot, count, device)
    images = batch.query, batch.support, batch.support_mask

    @torch.no_grad()
    def cold() -> object:
        with speed.autocast(cfg.Eval.precision, device):
            if plain and isinstance(model, AMFormer):
                return plain_predict(model, *images)
            return model(*images)

    if work == "cold" or plain:  # the plain formulation stores no features, so warm equals cold
        return cold
    with speed.autocast(cfg.Eval.precision, device):
        stored = model.encoder.query(images[0]), model.encoder.supports(*images[1:])

    @torch.no_grad()
    def warm() -> object:
        with speed.autocast(cfg.Eval.precision, device):
            return model.match(*stored)

    return warm


def operations(work: str, cfg: Config, plain: bool = False) -> int:
    """Count the operations of the work, without those that compose and fold weights once.

    The options of precision and speed are ignored: they change no count, and the CPU lacks some.
    """
    run = prepare(work, _without_options(cfg), torch.device("cpu"), plain)
    count(run)
    return count(run)


def _without_options(cfg: Config) -> Config:
    train, evaluation = replace(cfg.Train, precision="fp32"), replace(cfg.Eval, precision="fp32")
    return replace(cfg, Speed=SpeedSection(), Train=train, Eval=evaluation)


def count_launches(work: str, cfg: Config, batch: int | None = None) -> Launches:
    """Count the launches of the work, without an accelerator, as `operations`; see `prepare`."""
    return launches(prepare(work, _without_options(cfg), torch.device("cpu"), batch=batch))


def seconds(runs: list[Callable[[], object]], repeat: int) -> list[float]:
    """Return the median time of each run in seconds, after one run to warm up.

    The runs take turns, so that a disturbance affects all of them.
    `torch.utils.benchmark.Timer` measures one after the other, and runs each twice more to warm up.
    """
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, times in zip(runs, taken, strict=True):
            begin = timer()  # waits for the GPU
            run()
            if turn:
                times.append(timer() - begin)
    return [statistics.median(times) for times in taken]


def peak_rate(device: torch.device) -> float:
    """Return the operations per second of the fastest of several large matrix products.

    They run in float32, with the settings of this process (such as `Speed.tf32`).
    """
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device)
    product = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * n**3 / min(product.blocked_autorange(min_run_time=1).times)


def peak_memory(run: Callable[[], object], device: torch.device, before: int) -> int:
    """Return the peak in bytes: of the GPU's memory, or of this process minus `before`."""
    run()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident_peak() - before


# --- one row, in its own process ------------------------------------------------------------------


def row(args: argparse.Namespace) -> None:
    """Measure in this process and print JSON: the memory, or the times and the peak rate."""
    before = resident_peak()
    device = distributed.init(args.gpus).device
    [work], cfg = args.work, config(args, args.size[0], args.shot[0])
    if args.memory:
        run = prepare(work, cfg, device, args.plain)
        measured: dict[str, object] = {"memory": peak_memory(run, device, before)}
    else:
        runs = [prepare(work, cfg, device, plain) for plain in _sides(args)]
        runs = list(map(_recorded, runs)) if args.graphs else runs
        measured = {"seconds": seconds(runs, args.repeat), "rate": peak_rate(device)}
    print(json.dumps(measured))  # for `_measure`, not for a reader


def _recorded(run: Callable[[], object]) -> Callable[[], object]:
    """Return the work as a CUDA graph that is replayed."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _measure(args: argparse.Namespace, *flags: str) -> dict:
    """Return what `row` measures in a new process."""
    words = [sys.executable, "-m", "util.bench", "--row", *flags, "--gpus", str(args.gpus)]
    words += ["--repeat", str(args.repeat), "--config", str(args.config), *args.overrides]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        remedy = "if memory ran out, give a smaller --size or leave out --plain"
        raise UserError(f"{' '.join(flags)}: ended by signal {-done.returncode}; {remedy}")
    if done.returncode:  # it has printed why
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


# --- the tables -----------------------------------------------------------------------------------


def config(args: argparse.Namespace, size: int, shot: int) -> Config:
    """Return the config of a row."""
    return load_config(args.config, [f"Data.size={size}", f"Data.shot={shot}", *args.overrides])


def table(args: argparse.Namespace) -> None:
    """Print a table in Markdown, each row as soon as it is measured.

    Raises `UserError` if the machine has no such GPU, or a row ran out of memory.
    """
    distributed.check_gpus(args.gpus)
    heads = _heads(args)
    log.info("| work | shot | px | %s |", " | ".join(heads))
    log.info("|%s", " --- |" * (3 + len(heads)))
    for size in args.size:
        for shot in args.shot:
            for work in args.work:
                cells = " | ".join(_numbers(args, work, shot, size))
                log.info("| %s | %s | %s | %s |", work, shot, size, cells)


def _heads(args: argparse.Namespace) -> list[str]:
    if args.launches:
        return [f"{what}, batch {n}" for n in LAUNCH_BATCHES for what in ("launches", "reads")]
    names = ["GFLOP", *([] if args.count else ["s", "MB"])]
    heads = [h for n in names for h in ([n, "plain", "ratio"] if args.plain else [n])]
    return heads + ([] if args.count else ["floor s", "of the floor's rate"])


def _sides(args: argparse.Namespace) -> list[bool]:
    """Return the values of `plain` to measure."""
    return [False, True] if args.plain else [False]


def _numbers(args: argparse.Namespace, work: str, shot: int, size: int) -> list[str]:
    """Return the cells of a row."""
    if args.launches:
        cfg = config(args, size, shot)
        each = [count_launches(work, cfg, batch) for batch in LAUNCH_BATCHES]
        return [cell for n in each for cell in (f"{n.kernels:,}", str(n.reads))]
    counts = [operations(work, config(args, size, shot), plain) for plain in _sides(args)]
    cells = _cells([n / 1e9 for n in counts], ".1f")
    if args.count:
        return cells
    which = ["--work", work, "--shot", str(shot), "--size", str(size)]
    timed = _measure(args, *which, *(["--plain"] if args.plain else []))
    flags = [["--plain"] if plain else [] for plain in _sides(args)]
    memory = [_measure(args, *which, "--memory", *each)["memory"] / 1e6 for each in flags]
    floor = counts[0] / timed["rate"]
    cells += _cells(timed["seconds"], ".3f") + _cells(memory, ".0f")
    return cells + [f"{floor:.3f}", f"{floor / timed['seconds'][0]:.2f}"]


def _cells(values: list[float], form: str) -> list[str]:
    """Return values as text, and their ratio if there are two."""
    ratio = [f"{values[0] / values[1]:.3f}"] if len(values) > 1 else []
    return [*(f"{value:{form}}" for value in values), *ratio]


def counts(work: str, cfg: Config) -> tuple[int, int]:
    """Return the operations and the launches of the work; no option changes them."""
    return operations(work, cfg), count_launches(work, cfg).kernels


def option_cells(
    args: argparse.Namespace, work: str, size: int, mode: str, words: Sequence[str],
    counted: tuple[int, int],
) -> list[str]:  # fmt: skip
    """Return the cells of a row of `util.bench.accelerator`.

    `words` change the config, and `counted` is what `counts` returned.
    """
    args = argparse.Namespace(**{**vars(args), "overrides": [*args.overrides, *words]})
    flags = ["--work", work, "--shot", "1", "--size", str(size), *["--graphs"] * (mode == "graphs")]
    timed = _measure(args, *flags)
    [taken], (flop, kernels) = timed["seconds"], counted
    unit = "episodes" if work in ("cold", "warm") else "iterations"
    told = "1 graph" if mode == "graphs" else "-" if mode == "compile" else f"{kernels:,}"
    share = f"{flop / taken / timed['rate']:.2f}"
    return [work, str(size), mode, f"{1 / taken:.2f} {unit}", f"{taken:.4f}", told, share]
