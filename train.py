"""Stage two: train a system, by default AMFormer (G and D in turn), and validate.

sh train.sh split0 pascal 4                  # fold 0 on four GPUs; stage one first if needed
sh train.sh split0 pascal 0 Train.max_iterations=4 Eval.val_episodes=2          # on the CPU
sh train.sh split0 pascal 4 Train.resume=auto                                   # resume

python train.py --replay exp/.../nonfinite_1234_0.pth        # repeat a step that was not finite

SIGINT (Ctrl-C) and SIGTERM end the iteration, write `last.pth` and print the command that resumes.
`Train.save_path` gets last.pth, best.pth, log.txt, config.yaml and curves for TensorBoard.
"""

from util.config.arguments import TRAIN_FLAGS, arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__, TRAIN_FLAGS)  # before torch, which takes seconds to import

import torch

from model import build_model
from model.backbones import pixel_statistics
from util import speed
from util.checkpoint.load import load_base_learner
from util.data import Batches, open_episodes, skipped_by_all_ranks
from util.data.controls import ABSENT
from util.evaluate import Evaluator, draw_episodes
from util.evaluate.beside import episodes_beside
from util.evaluate.presence import calibrate, split_presence
from util.features import encoded_batches
from util.runtime import Progress, Stop, UserError, distributed, main
from util.runtime.log import log
from util.runtime.rng import seed_everything
from util.train.optimizers import count_parameters, warmup_iterations
from util.train.replay import dump_nonfinite_step, replay
from util.train.stages import SystemRun
from util.train.trainers import build_trainer

STRIPS = 4  # episodes drawn per validation


def train() -> None:
    """Run stage two."""
    cfg, gpus = arguments(__doc__, TRAIN_FLAGS)
    options = cfg.Train
    if options.replay:
        return replay(cfg, gpus)
    ranks = distributed.init(gpus)
    stop = Stop(ranks.is_main)
    statistics = pixel_statistics(cfg.Method.backbone)
    with distributed.main_first(ranks):  # rank 0 writes the fold lists
        # Query, class and supports are drawn in util/data/episodes.py, `EpisodeSampler.plan`.
        episodes, report = open_episodes(cfg, "train", options.seed, *statistics)
        tests, more = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    size, epochs, limit = options.batch_size, options.epochs, options.max_iterations
    batches = Batches(len(episodes), size, epochs, ranks, limit)

    torch.manual_seed(options.seed)  # the same weights on every rank ...
    model = build_model(cfg)
    base_learner = load_base_learner(model.encoder.base, cfg)
    model.to(ranks.device)
    report += more + speed.set_up(model, cfg, ranks.device)
    if cfg.Method.pre_weight and base_learner is None:
        what = "does not say on which classes it was trained"
        report.append(f"Method.pre_weight: {cfg.Method.pre_weight} {what}")
    seed_everything(options.seed + ranks.rank)  # ... and different dropout
    # Which parameters learn, and at which rate (K-shot weights too): util/train/optimizers.py.
    warmup = warmup_iterations("Train", batches) if options.warmup else 0
    if options.sub_epoch_val and not any(map(batches.is_middle, range(batches.total + 1))):
        raise UserError("Train.sub_epoch_val: no epoch of this run has a middle; remove it")
    trainer = build_trainer(model, cfg, batches.total, ranks, warmup)
    run = SystemRun(trainer, cfg, ranks, batches, base_learner)
    report += [*run.start(), count_parameters(model)]
    evaluator = Evaluator(model, tests, cfg, ranks)
    progress = Progress(batches.total, options.print_freq, batches.start, ranks.is_main)
    for line in dict.fromkeys(report):  # both subsets may say the same of a folder
        log.info(line)
    log.info(f"{cfg.name}: {len(episodes)} episodes an epoch, {batches.total} iterations")

    def goes_on() -> bool:
        return run.goes_on(lambda: validate(run, evaluator, stop), stop)

    with stop, run.saved_on_failure():
        if not run.owes_validation or goes_on():
            # model/encoder.py: a support is multiplied by its mask, where 255 is background.
            encoded = encoded_batches(model.encoder, episodes, batches, cfg)
            for batch in progress.waiting(encoded):
                at = run.done, run.done % batches.per_epoch  # iteration of the run, of the epoch
                with dump_nonfinite_step(trainer, batch, *at, cfg, episodes.sampler.fold):
                    losses = trainer.step(batch, *at)
                run.step_done({**losses, **trainer.rates()})
                progress.step(run.done, losses, trainer.rate)
                if not goes_on():
                    break
            else:  # no batch came: asked to stop, or nothing was left to do
                goes_on()
    progress.close()
    if lost := skipped_by_all_ranks(episodes, ranks):
        log.info(f"{lost} episodes that could not be read were skipped")
    best = f"best mIoU {run.best:.2f}" if options.evaluate else "not validated"
    log.info(f"{best}; checkpoints in {run.path}")
    run.close()
    distributed.close()


def validate(run: SystemRun, evaluator: Evaluator, stop: Stop) -> None:
    """Score the first validation episodes and write the checkpoints, unless asked to stop."""
    cfg = evaluator.cfg
    count, seeds = cfg.Eval.val_episodes, [cfg.Eval.val_seed]
    shares = {ABSENT: cfg.Eval.absent} if cfg.Eval.absent else {}
    beside = episodes_beside(evaluator.episodes.sampler, count, seeds, shares)
    order = evaluator.order(count, seeds, beside.tasks)
    tally = evaluator.tally(order)
    results = evaluator.run(order, tally, stop=lambda: stop.requested)
    if not results:
        return
    scores = results[cfg.Eval.val_seed]
    strips = draw_episodes(evaluator, order, tally.rows, STRIPS, extremes=False)["episodes"]
    present, absent = split_presence(tally.rows)
    threshold = calibrate(present, absent) if len(absent) else None
    run.record_validation(scores, strips, threshold)  # chooses best.pth
    log.info(f"iteration {run.done}: {scores.line()}  best {run.best:.2f}")


if __name__ == "__main__":
    main(train)
