"""Stage two: trains AMFormer's G and D in turn, validates, keeps `last.pth` and `best.pth`.

sh train.sh split0 pascal 4                  # fold 0 on four GPUs; stage one first if needed
sh train.sh split0 pascal 0 Train.max_iterations=4 Eval.val_episodes=2          # on the CPU
sh train.sh split0 pascal 4 Train.resume=auto                                   # goes on

python train.py --replay exp/.../nonfinite_1234_0.pth        # a step that was not finite, alone

SIGINT (Ctrl-C) and SIGTERM end the iteration, write `last.pth` and print the command that goes on.
"""

from util.config.arguments import TRAIN_FLAGS, arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__, TRAIN_FLAGS)  # before torch, which takes seconds to import

import torch

from model import build_model
from model.backbones import pixel_statistics
from util.checkpoint.load import load_base_learner
from util.data.batches import Batches
from util.data.dataset import open_episodes
from util.data.loading import skipped
from util.evaluate.evaluator import Evaluator
from util.evaluate.visualize import Gallery
from util.features import encoded_batches
from util.runtime import distributed, speed
from util.runtime.cli import main
from util.runtime.log import log
from util.runtime.progress import Progress
from util.runtime.rng import seed_everything
from util.runtime.stop import Stop, resume_command
from util.train.adversarial import AdversarialTrainer
from util.train.replay import dump_nonfinite_step, replay
from util.train.run import Run

STRIPS = 4  # episodes drawn per validation


def train() -> None:
    cfg, gpus = arguments(__doc__, TRAIN_FLAGS)
    if cfg.Train.replay:
        return replay(cfg, gpus)
    ranks = distributed.init(gpus)
    stop = Stop(ranks.is_main)
    statistics = pixel_statistics(cfg.Method.backbone)
    with distributed.main_first(ranks):  # it makes the lists
        episodes, report = open_episodes(cfg, "train", cfg.Train.seed, *statistics)
        tests, more = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    schedule = Batches(
        len(episodes), cfg.Train.batch_size, cfg.Train.epochs, ranks, cfg.Train.max_iterations
    )

    torch.manual_seed(cfg.Train.seed)  # the same weights on every rank ...
    model = build_model(cfg)
    load_base_learner(model.encoder.base, cfg)
    model.to(ranks.device)
    options = speed.set_up(model, cfg, ranks.device)
    seed_everything(cfg.Train.seed + ranks.rank)  # ... and different dropout
    game = AdversarialTrainer(model, cfg, schedule.total, ranks)
    run = Run(model, game, cfg, ranks)
    report += more + options + run.start(schedule)
    evaluator = Evaluator(model, tests, cfg, ranks)
    progress = Progress(schedule.total, cfg.Train.print_freq, schedule.start, ranks.is_main)
    for line in report:
        log.info(line)
    log.info(f"{cfg.name}: {len(episodes)} episodes an epoch, {schedule.total} iterations")

    def goes_on(done: int) -> bool:
        """Validates and saves what is due after so many iterations; False ends the run."""
        due = run.owes_validation or schedule.ends_epoch(done, cfg.Train.val_period)
        validated = not due or validate(run, evaluator, progress, stop, done)
        if validated and (done == schedule.total or due and run.exhausted()):
            return False
        stopping, saving = distributed.any_rank((stop.requested, run.save_is_due()), ranks)
        if stopping or saving:
            run.save(done, validated=validated)
        if stopping:
            log.info(f"stopped at iteration {done}; go on with:\n{resume_command()}")
        return not stopping

    done = schedule.start
    with stop, run.saved_on_a_fault(lambda: done, schedule):
        if not run.owes_validation or goes_on(done):
            batches = encoded_batches(model.encoder, episodes, schedule, cfg)
            for iteration, batch in enumerate(progress.waiting(batches), done):
                in_epoch = iteration % schedule.per_epoch
                with dump_nonfinite_step(
                    game, batch, iteration, in_epoch, cfg, episodes.sampler.fold
                ):
                    losses = game.step(batch, iteration, in_epoch)
                done = iteration + 1
                progress.step(done, losses, game.rate)
                run.log_step(done, losses)
                if not goes_on(done):
                    break
    if lost := skipped(episodes, ranks):
        log.info(f"{lost} episodes that could not be read were skipped")
    log.info(f"best mIoU {run.best:.2f}; checkpoints in {run.folder}")
    run.close()
    distributed.close()


def validate(run: Run, evaluator: Evaluator, progress: Progress, stop: Stop, done: int) -> bool:
    """Scores the first validation episodes and writes the checkpoints; False when asked to stop."""
    cfg = evaluator.cfg
    work = evaluator.order(cfg.Eval.val_episodes, [cfg.Eval.val_seed])
    gallery = Gallery(evaluator.episodes, STRIPS, work.episodes)
    results = evaluator.run(work, show=gallery.add, stop=lambda: stop.requested)
    if not results:
        return False
    scores = results[cfg.Eval.val_seed]
    run.validated(scores, gallery.gathered()["episodes"], done)
    log.info(f"iteration {done}: {scores.line()}  best {run.best:.2f}")
    if run.exhausted():
        log.info(f"stopped early: {run.stale} epochs without a better mIoU")
    return True


if __name__ == "__main__":
    main(train)
