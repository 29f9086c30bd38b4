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
from util.data import Batches, open_base_images, skipped_by_all_ranks
from util.runtime import Progress, Stop, distributed, main
from util.runtime.log import log
from util.runtime.rng import seed_everything
from util.train import base_learner
from util.train.run import BaseLearnerRun


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
    batches = Batches(len(images), base.batch_size, base.epochs, ranks, base.max_iterations)

    seed_everything(base.seed + ranks.rank)
    model = base_learner.build_base_learner(cfg, ranks)
    trainer = base_learner.BaseLearnerTrainer(model, cfg, batches.total, ranks)
    run = BaseLearnerRun(trainer, cfg, ranks, batches)
    report += run.start() + more
    progress = Progress(batches.total, cfg.Train.print_freq, batches.start, ranks.is_main)
    for line in report:
        log.info(line)
    log.info(f"base learner: {len(images)} images, {batches.total} iterations, {ranks.device}")

    miou = None
    with stop, run.saved_on_failure():
        samples = base_learner.training_batches(model, images, batches, cfg, ranks)
        for x, target in progress.waiting(samples):
            loss = trainer.step(x, target, run.done)
            run.step_done()
            progress.step(run.done, {"loss": loss}, trainer.rate)
            if run.save_if_due(stop):
                break
        else:  # not stopped
            run.save()  # a validation can take long
            progress.close()
            miou = base_learner.validate(model, tests, cfg, ranks, stop)
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
