"""Stage two: trains AMFormer's G and D in turn, validates, keeps `last.pth` and `best.pth`.

    sh train.sh split0 pascal 4                       # PASCAL-5i fold 0 on four GPUs, both stages
    sh train.sh split0 pascal 0 Train.max_iterations=4 Eval.val_episodes=2      # a look, on the CPU
    python train.py --config config/pascal/pascal_split0_resnet50.yaml --gpus 1 Train.resume=exp/.../last.pth
"""

from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter

from model import build_model
from model.backbones import pixel_statistics
from util import checkpoint, distributed
from util.config import arguments, save_config, to_dict
from util.data.dataset import open_episodes
from util.encoded import encoded_batches
from util.evaluate import Evaluator, Example
from util.game import Game
from util.logger import Progress, main
from util.visualize import strip
from util.weights import load_base_learner, load_checkpoint

STRIPS = 4  # episodes drawn per validation


def train() -> None:
    cfg, gpus = arguments(__doc__)
    ranks = distributed.init(gpus)
    torch.manual_seed(cfg.Train.seed)
    torch.use_deterministic_algorithms(cfg.Train.seed_deterministic)
    statistics = pixel_statistics(cfg.Method.backbone)
    episodes, report = open_episodes(cfg, "train", cfg.Train.seed, *statistics)
    tests, more = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    schedule = distributed.Batches(
        len(episodes), cfg.Train.batch_size, cfg.Train.epochs, ranks, cfg.Train.max_iterations
    )

    model = build_model(cfg)  # the same on every rank: drawn from the same seed
    load_base_learner(model.encoder.base, cfg)
    model.to(ranks.device)
    game = Game(model, cfg, schedule.total, ranks)
    evaluator = Evaluator(model, tests, cfg, ranks)
    torch.manual_seed(cfg.Train.seed + ranks.rank)  # dropout differs between ranks

    folder = Path(cfg.Train.save_path)
    best, stale = -1.0, 0
    if cfg.Train.resume:
        state = load_checkpoint(model, Path(cfg.Train.resume))
        game.load_state_dict(state)
        schedule.start, best, stale = state["iteration"], state["best"], state["stale"]
        checkpoint.set_random_state(state["random"][ranks.rank % len(state["random"])])
    progress = Progress(schedule.total, cfg.Train.print_freq, schedule.start, ranks.is_main)
    for line in report + more:
        progress.note(line)
    progress.note(f"{cfg.name}: {len(episodes)} episodes an epoch, {schedule.total} iterations")
    writer = None
    if ranks.is_main:
        save_config(cfg, folder / "config.yaml")
        writer = SummaryWriter(str(folder))

    batches = encoded_batches(model.encoder, episodes, schedule, cfg)
    for iteration, batch in enumerate(batches, schedule.start):
        epoch, in_epoch = divmod(iteration, schedule.per_epoch)
        result = game.step(batch, iteration, in_epoch)
        done = iteration + 1
        progress.step(done, result.losses, game.rate)
        if writer and done % cfg.Train.print_freq == 0:
            for name, value in {**result.losses, **game.rates()}.items():
                writer.add_scalar(f"train/{name}", float(value), done)
        last = done == schedule.total
        if not last and (in_epoch < schedule.per_epoch - 1 or (epoch + 1) % cfg.Train.val_period):
            continue

        strips = []

        def draw(example: Example, strips=strips) -> None:
            if ranks.is_main and len(strips) < STRIPS:
                strips.append(strip(example, tests))

        scores = evaluator.run(cfg.Eval.val_episodes, cfg.Eval.val_seed, show=draw)
        better = scores.final.miou > best
        best, stale = (scores.final.miou, 0) if better else (best, stale + cfg.Train.val_period)
        random = distributed.gather(checkpoint.random_state())
        if writer:
            progress.note(f"epoch {epoch + 1}, iteration {done}: {scores.line()}  best {best:.2f}")
            writer.add_scalar("val/miou_final", scores.final.miou, done)
            writer.add_scalar("val/miou_meta", scores.meta.miou, done)
            writer.add_scalar("val/miou_base", scores.base_miou, done)
            writer.add_scalar("val/fb_iou", scores.final.fb_iou, done)
            writer.add_image("val/episodes", np.concatenate(strips, axis=1), done)
            writer.flush()
            state = {"model": model.state_dict(), **game.state_dict(), "config": to_dict(cfg)}
            state |= {"iteration": done, "best": best, "stale": stale, "random": random}
            checkpoint.save(folder / "last.pth", **state)
            if better:
                checkpoint.save(folder / "best.pth", **state)
        if cfg.Train.stop_interval and stale >= cfg.Train.stop_interval:
            progress.note(f"stopped: {stale} epochs without a better mIoU than {best:.2f}")
            break
    progress.note(f"best mIoU {best:.2f}; checkpoints in {folder}")
    if writer:
        writer.close()
    distributed.close()


if __name__ == "__main__":
    main(train)
