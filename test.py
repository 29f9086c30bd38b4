"""Tests a trained model as published: several seeds, mean and standard deviation.

    sh test.sh split0 pascal 1
    sh test.sh split0 pascal 0 Eval.episodes=10 Eval.seeds=[321] Eval.weight=last

Prints a table and writes `result.json` into the run's folder; `Eval.visualize=6` also
`episodes.png`.
"""

from util.config import arguments, check_first, to_dict

if __name__ == "__main__":
    check_first(__doc__)  # before torch, which takes seconds to import

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from model import build_model
from model.backbones import pixel_statistics
from util import distributed, speed
from util.data.dataset import open_episodes
from util.evaluate import Evaluator, summarize, table
from util.logger import Progress, main
from util.visualize import save_strips, strip
from util.weights import checkpoint_path, load_checkpoint, require_unseen


def test() -> None:
    cfg, gpus = arguments(__doc__)
    ranks = distributed.init(gpus)
    path = checkpoint_path(cfg)
    model = build_model(cfg)
    state = load_checkpoint(model, path)
    require_unseen(state, path, cfg)
    model.to(ranks.device)
    options = speed.set_up(model, cfg, ranks.device)
    statistics = pixel_statistics(cfg.Method.backbone)
    with distributed.main_first(ranks):  # it makes the lists
        episodes, report = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    evaluator = Evaluator(model, episodes, cfg, ranks)
    count, seeds = cfg.Eval.episodes, cfg.Eval.seeds
    work = evaluator.schedule(count, seeds)
    progress = Progress(work.episodes, max(1, work.episodes // 10), active=ranks.is_main)
    for line in report + options:
        progress.note(line)
    progress.note(
        f"{path}, iteration {state.get('iteration', '?')}: {len(seeds)} x {count} episodes"
    )

    strips: list[torch.Tensor] = []

    results = evaluator.run(
        work,
        watch=lambda done: progress.step(done, {}),
        show=lambda example: strips.append(strip(example, episodes)),
        shown=cfg.Eval.visualize * ranks.is_main,
    )
    for seed, scores in results.items():
        progress.note(f"seed {seed}: {scores.line()}")

    if ranks.is_main:
        summary = summarize(list(results.values()))
        progress.note(table(results))
        folder = Path(cfg.Train.save_path)
        result = {
            "checkpoint": str(path),
            "iteration": state.get("iteration"),
            "summary": summary,
            "seeds": {str(seed): asdict(scores) for seed, scores in results.items()},
            "config": to_dict(cfg),
        }
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".result.json.{os.getpid()}"
        temporary.write_text(json.dumps(result, indent=1))
        os.replace(temporary, folder / "result.json")
        progress.note(f"written: {folder / 'result.json'}")
        if strips:
            save_strips(strips, folder / "episodes.png")
            progress.note(f"written: {folder / 'episodes.png'}")
    distributed.close()


if __name__ == "__main__":
    main(test)
