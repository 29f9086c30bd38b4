"""Stage one: train the base learner of a fold, and write it to `Method.pre_weight`.

sh train.sh split0 pascal 4                  # runs stage one first if that file is absent
python train_base.py --config config/pascal/pascal_split0_resnet50.yaml --gpus 0 Base.epochs=2

SIGINT (Ctrl-C) and SIGTERM end the iteration, save the state and print the command that resumes.
The folder of the run lies beside that file: `base` beside base.pth. It gets a log, curves, the
scores of the best validation (result.json) and, until the run has ended, checkpoints.
"""

from util.config.arguments import arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__)  # before torch, which takes seconds to import

from util import speed
from util.config import to_dict
from util.data import Batches, open_base_images, skipped_by_all_ranks
from util.data.leaks import stage_one_leaks
from util.reproduce import record_environment
from util.runtime import Progress, Stop, distributed, main
from util.runtime.log import log
from util.runtime.rng import seed_everything
from util.train import base_learner
from util.train.optimizers import count_parameters, warmup_iterations
from util.train.stages import BaseLearnerRun


def train_base() -> None:
    """Run stage one."""
    cfg, gpus = arguments(__doc__)
    base_learner.check_target(cfg)
    ranks = distributed.init(gpus)
    speed.set_kernels(cfg)
    stop, base = Stop(ranks.is_main), cfg.Base
    with distributed.main_first(ranks):  # rank 0 writes the fold lists
        augmented, plain = (base_learner.transform(cfg, train=train) for train in (True, False))
        images, report = open_base_images(cfg, "train", augmented, base.seed)
        tests, more = open_base_images(cfg, "val", plain, None)
    leaks = stage_one_leaks(cfg)
    batches = Batches(len(images), base.batch_size, base.epochs, ranks, base.max_iterations)

    seed_everything(base.seed + ranks.rank)
    model = base_learner.build_base_learner(cfg, ranks)
    warmup = warmup_iterations("Base", batches) if base.warmup else 0
    trainer = base_learner.BaseLearnerTrainer(model, cfg, batches.total, ranks, warmup)
    run = BaseLearnerRun(trainer, cfg, ranks, batches)
    report += [*run.start(), *more, count_parameters(model)]
    validation = base_learner.Validation(tests, cfg, ranks)
    progress = Progress(batches.total, cfg.Train.print_freq, batches.start, ranks.is_main)
    for line in dict.fromkeys(report):  # both subsets may say the same of a folder
        log.info(line)
    which = f"{len(images)} images for training, {validation.count} for validation"
    log.info(f"base learner: {which}, {batches.total} iterations, {ranks.device}")

    def validate() -> None:
        """Score the validation images and write the checkpoints, unless asked to stop."""
        if found := validation.run(model, stop):
            run.record_validation(*found)  # chooses best.pth
            text = f"base mIoU {found[0].miou:.2f}  loss {found[0].loss:.4f}  best {run.best:.2f}"
            log.info(f"iteration {run.done}: {text}")

    with stop, run.saved_on_failure():
        if not run.owes_validation or run.goes_on(validate, stop):
            samples = base_learner.training_batches(model, images, batches, cfg, ranks)
            for x, target in progress.waiting(samples):
                values = trainer.step(x, target, run.done)
                run.step_done({**values, "lr": trainer.rate})
                progress.step(run.done, values, trainer.rate)
                if not run.goes_on(validate, stop):
                    break
            else:  # no batch came: asked to stop, or nothing was left to do
                run.goes_on(validate, stop)
    progress.close()
    if lost := skipped_by_all_ranks(images, ranks):
        log.info(f"{lost} images that could not be read were skipped")
    if run.ended():
        record = {"environment": record_environment(cfg, ranks, {}), "config": to_dict(cfg)}
        run.finish(record | {"leaks": leaks})
    run.close()
    distributed.close()


if __name__ == "__main__":
    main(train_base)
