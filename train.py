"""Stage two: trains AMFormer's G and D in turn, validates, keeps `last.pth` and `best.pth`.

sh train.sh split0 pascal 4                  # fold 0 on four GPUs; stage one first if needed
sh train.sh split0 pascal 0 Train.max_iterations=4 Eval.val_episodes=2          # on the CPU
sh train.sh split0 pascal 4 Train.resume=exp/pascal/split0_resnet50/last.pth
"""

from util.config import arguments, check_first

if __name__ == "__main__":
    check_first(__doc__)  # before torch, which takes seconds to import

import torch
from torch import Tensor

from model import build_model
from model.backbones import pixel_statistics
from util import distributed, speed
from util.data.dataset import open_episodes
from util.encoded import encoded_batches
from util.evaluate import Evaluator, Example
from util.game import Game
from util.logger import Progress, main
from util.run import Run
from util.visualize import strip
from util.weights import load_base_learner

STRIPS = 4  # episodes drawn per validation


def train() -> None:
    cfg, gpus = arguments(__doc__)
    ranks = distributed.init(gpus)
    torch.use_deterministic_algorithms(cfg.Train.seed_deterministic)
    statistics = pixel_statistics(cfg.Method.backbone)
    with distributed.main_first(ranks):  # it makes the lists
        episodes, report = open_episodes(cfg, "train", cfg.Train.seed, *statistics)
        tests, more = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    schedule = distributed.Batches(
        len(episodes), cfg.Train.batch_size, cfg.Train.epochs, ranks, cfg.Train.max_iterations
    )

    torch.manual_seed(cfg.Train.seed)  # the same weights on every rank ...
    model = build_model(cfg)
    load_base_learner(model.encoder.base, cfg)
    model.to(ranks.device)
    options = speed.set_up(model, cfg, ranks.device)
    torch.manual_seed(cfg.Train.seed + ranks.rank)  # ... and different dropout
    game = Game(model, cfg, schedule.total, ranks)
    run = Run(model, game, cfg, ranks)
    run.start(schedule)
    evaluator = Evaluator(model, tests, cfg, ranks)

    progress = Progress(schedule.total, cfg.Train.print_freq, schedule.start, ranks.is_main)
    for line in report + more + options:
        progress.note(line)
    progress.note(f"{cfg.name}: {len(episodes)} episodes an epoch, {schedule.total} iterations")
    batches = encoded_batches(model.encoder, episodes, schedule, cfg)
    for iteration, batch in enumerate(progress.waiting(batches), schedule.start):
        epoch, in_epoch = divmod(iteration, schedule.per_epoch)
        result = game.step(batch, iteration, in_epoch)
        done = iteration + 1
        progress.step(done, result.losses, game.rate)
        run.log_step(done, result.losses)
        end_of_epoch = in_epoch == schedule.per_epoch - 1
        if done < schedule.total and not (end_of_epoch and (epoch + 1) % cfg.Train.val_period == 0):
            continue
        strips: list[Tensor] = []

        def draw(example: Example, strips: list[Tensor] = strips) -> None:
            strips.append(strip(example, tests))

        seed = cfg.Eval.val_seed
        work = evaluator.schedule(cfg.Eval.val_episodes, [seed])
        scores = evaluator.run(work, show=draw, shown=STRIPS * ranks.is_main)[seed]
        run.validated(scores, strips, done)
        progress.note(f"epoch {epoch + 1}, iteration {done}: {scores.line()}  best {run.best:.2f}")
        if run.exhausted():
            progress.note(f"stopped early: {run.stale} epochs without a better mIoU")
            break
    progress.note(f"best mIoU {run.best:.2f}; checkpoints in {run.folder}")
    run.close()
    distributed.close()


if __name__ == "__main__":
    main(train)
