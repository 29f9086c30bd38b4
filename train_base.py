"""Stage one: train the base learner of a fold, and write it to `Method.pre_weight`.

sh train.sh split0 pascal 4                  # runs stage one first if that file is absent
python train_base.py --config config/pascal/pascal_split0_resnet50.yaml --gpus 0 Base.epochs=2

SIGINT (Ctrl-C) and SIGTERM end the iteration, save the state beside that file and print the command
that resumes. A log lies there, too: base.log for base.pth.
"""

from util.config.arguments import arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__)  # before torch, which takes seconds to import

from util import speed
from util.data.base_images import open_base_images
from util.data.batches import Batches
from util.data.loading import skipped_by_all_ranks
from util.runtime import distributed
from util.runtime.cli import main
from util.runtime.log import log
from util.runtime.progress import Progress
from util.runtime.rng import seed_everything
from util.runtime.stop import Stop
from util.train.base_learner import (
    BaseLearnerRun,
    BaseLearnerTrainer,
    build_base_learner,
    check_target,
    training_batches,
    transform,
    validate,
)


def train_base() -> None:
    """Run stage one."""
    cfg, gpus = arguments(__doc__)
    check_target(cfg)
    ranks = distributed.init(gpus)
    speed.set_kernels(cfg)
    stop, base = Stop(ranks.is_main), cfg.Base
    with distributed.main_first(ranks):  # rank 0 writes the fold lists
        images, report = open_base_images(cfg, "train", transform(cfg, train=True), base.seed)
        tests, more = open_base_images(cfg, "val", transform(cfg, train=False), None)
    batches = Batches(len(images), base.batch_size, base.epochs, ranks, base.max_iterations)

    seed_everything(base.seed + ranks.rank)
    model = build_base_learner(cfg, ranks)
    trainer = BaseLearnerTrainer(model, cfg, batches.total, ranks)
    run = BaseLearnerRun(trainer, cfg, ranks, batches)
    report += run.start() + more
    progress = Progress(batches.total, cfg.Train.print_freq, batches.start, ranks.is_main)
    for line in report:
        log.info(line)
    log.info(f"base learner: {len(images)} images, {batches.total} iterations, {ranks.device}")

    miou = None
    with stop, run.saved_on_failure():
        samples = training_batches(model, images, batches, cfg, ranks)
        for x, target in progress.waiting(samples):
            loss = trainer.step(x, target, run.done)
            run.step_done()
            progress.step(run.done, {"loss": loss}, trainer.rate)
            if run.save_if_due(stop):
                break
        else:  # not stopped
            run.save()  # a validation can take long
            progress.close()
            miou = validate(model, tests, cfg, ranks, stop)
            if miou is None:
                run.log_stop()
    if lost := skipped_by_all_ranks(images, ranks):
        log.info(f"{lost} images that could not be read were skipped")
    if miou is not None:
        run.finish(miou)
    run.close()
    distributed.close()


if __name__ == "__main__":
    main(train_base)
