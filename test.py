"""Test a trained model: several seeds, mean and standard deviation.

    sh test.sh split0 pascal 1
    sh test.sh split0 pascal 0 Eval.episodes=10 Eval.seeds=[321] Eval.weight=last
    sh test.sh split0 pascal 1 Data.shot=5 Eval.kshot=ensemble   # a 1-shot model, five supports

Prints a table and writes `result.json` and `test.log` into the run's folder. `Eval.visualize=6`,
which is `--visualize 6` of `python test.py`, also draws episodes: `episodes.png` (evenly spread),
`worst.png` and `best.png` (lowest and highest IoU).

    python test.py --verify exp/pascal/split0_resnet50/result.json

repeats the test of that file and compares; the exit status is 0 if every number is equal, else 2.
"""

from util.config.arguments import TEST_FLAGS, arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__, TEST_FLAGS)  # before torch, which takes seconds to import

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from model.backbones import pixel_statistics
from util import speed
from util.checkpoint import checkpoint_path, read_checkpoint, require_unseen, trained_model
from util.config import to_dict
from util.data import open_episodes
from util.evaluate import GALLERIES, Evaluator, Gallery, save_strips
from util.evaluate.scores import add_confusions, format_table, summarize
from util.reproduce import file_hash, record_environment, verify
from util.runtime import Progress, atomic_write, distributed, main
from util.runtime.cost import peak_gb
from util.runtime.log import add_log_file, log
from util.train.optimizers import count_parameters


def test() -> None:
    """Run the test."""
    cfg, gpus = arguments(__doc__, TEST_FLAGS)
    ranks = distributed.init(gpus)
    path = checkpoint_path(cfg)
    state = read_checkpoint(path)
    require_unseen(state, path, cfg)
    model = trained_model(cfg, state, path)
    model.to(ranks.device)
    options = speed.set_up(model, cfg, ranks.device)
    statistics = pixel_statistics(cfg.Method.backbone)
    with distributed.main_first(ranks):  # rank 0 writes the fold lists
        episodes, report = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    evaluator = Evaluator(model, episodes, cfg, ranks)
    record = {
        "checkpoint": str(path),
        "checkpoint_sha256": file_hash(path),
        "iteration": state.get("iteration"),
        "environment": record_environment(cfg, ranks, {"val": episodes.sampler.fold}),
        "config": to_dict(cfg),
    }
    earlier = None
    if cfg.Eval.verify:
        earlier = verify.read_comparable(cfg.Eval.verify, record)
    elif ranks.is_main:
        open_log(Path(cfg.Train.save_path))
    count, seeds = cfg.Eval.episodes, cfg.Eval.seeds
    order = evaluator.order(count, seeds)
    progress = Progress(order.episodes, max(1, order.episodes // 10), active=ranks.is_main)
    for line in [*report, *options, count_parameters(model)]:
        log.info(line)
    log.info(f"{path}, iteration {state.get('iteration', '?')}: {len(seeds)} x {count} episodes")

    gallery = Gallery(episodes, cfg.Eval.visualize, order.episodes, extremes=True)
    begin = time.monotonic()
    results = evaluator.run(
        order, on_progress=lambda done: progress.step(done, {}), on_episode=gallery.add
    )
    seconds, strips = time.monotonic() - begin, gallery.gather()
    progress.close()
    for seed, scores in results.items():
        log.info(f"seed {seed}: {scores.line()}")

    if ranks.is_main:
        log.info(format_table(results))
        by_seed = {str(seed): asdict(scores) for seed, scores in results.items()}
        # In the file, confusions are summed over the seeds.
        confusion = add_confusions(scores.pop("confusion") for scores in by_seed.values())
        result = record | {
            "summary": summarize(list(results.values())),
            "seeds": by_seed,
            "confusion": confusion,
            "cost": {
                "seconds": seconds,
                "episodes_per_s": count * len(seeds) / seconds,
                "peak_memory_gb": peak_gb(ranks.device),
            },
        }
        if earlier:
            verify.compare_results(cfg.Eval.verify, earlier, result, log.info)
        else:
            write(Path(cfg.Train.save_path), result, strips)
    distributed.close()


def open_log(folder: Path) -> None:
    """Write this test's messages to `test.log`, too."""
    folder.mkdir(parents=True, exist_ok=True)
    add_log_file(folder / "test.log")


def write(folder: Path, result: dict, strips: dict[str, list[np.ndarray]]) -> None:
    """Write `result.json` and the pictures; remove pictures of an earlier test."""
    atomic_write(folder / "result.json", json.dumps(result, indent=1).encode())
    log.info(f"written: {folder / 'result.json'}")
    for name in GALLERIES:
        path = folder / f"{name}.png"
        if name in strips:
            save_strips(strips[name], path)
            log.info(f"written: {path}")
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(test)
