"""Measure how fast images of a config are read and made ready for the network.

    python -m util.bench.data config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

prints images per second of one core's processor time: decoded; decoded with the mask; read from a
cache (in a folder that is removed again); ready for the network. The last row is the rate of the
loader with `Data.workers` processes, by the clock.
"""

from util.config.arguments import check_first, config_argument

if __name__ == "__main__":
    check_first(config_argument, __doc__)  # before torch, which takes seconds to import

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from util.config import Config
from util.data.batches import FixedBatches
from util.data.dataset import EpisodeDataset, collate, open_episodes
from util.data.image_io import read_image
from util.data.loading import load_batches
from util.runtime.cli import main
from util.runtime.log import log

IMAGES = 100  # per row, the first of the fold's list
WARM_UP = 3  # batches that the loader delivers before its rate is measured


def per_second(call: Callable[[str], object], names: list[str]) -> float:
    """Return images per second of processor time, after one round that reads the files."""
    for name in names:
        call(name)
    start = time.process_time()
    for name in names:
        call(name)
    return len(names) / (time.process_time() - start)


def loader_rate(episodes: EpisodeDataset, workers: int, batch_size: int) -> float:
    """Return the loader's images per second by the clock, without its start."""
    count = WARM_UP + 4 * max(1, workers)
    numbers = [list(range(i * batch_size, (i + 1) * batch_size)) for i in range(count)]
    loader = load_batches(episodes, FixedBatches(numbers), workers, collate_fn=collate)
    arrivals = [time.monotonic() for _ in loader]
    seconds = arrivals[-1] - arrivals[WARM_UP - 1]
    return (count - WARM_UP) * batch_size * (1 + episodes.sampler.shot) / seconds


def rates(cfg: Config, train: EpisodeDataset) -> dict[str, float]:
    """Return images per second of one core for each kind of work."""
    names, rng = train.sampler.fold.images[:IMAGES], np.random.default_rng(0)
    source = train.source
    found = {
        "cv2.imread": per_second(lambda n: cv2.imread(str(source.image_path(n))), names),
        "image as RGB": per_second(lambda n: read_image(source.image_path(n)), names),
        "image and mask": per_second(source.decode, names),
    }
    ready = f"{'augmented' if cfg.Data.augment else 'resized'} to {cfg.Data.size} px"
    with tempfile.TemporaryDirectory() as folder:
        data = replace(cfg.Data, cache=folder)
        cached, _ = open_episodes(replace(cfg, Data=data), "train", cfg.Train.seed)
        found["image and mask, Data.cache"] = per_second(cached.source.load, names)
        found[ready] = per_second(lambda n: train.load_pair(n, rng), names)
        found[f"{ready}, Data.cache"] = per_second(lambda n: cached.load_pair(n, rng), names)
    return found


def _main() -> None:
    cfg = config_argument(__doc__)
    train, _ = open_episodes(cfg, "train", cfg.Train.seed)
    for work, rate in rates(cfg, train).items():
        log.info("%-36s%8.0f images/s of one core", work, rate)
    rate = loader_rate(train, cfg.workers, cfg.Train.batch_size)
    log.info("%-36s%8.0f images/s", f"loader, {cfg.workers} processes", rate)


if __name__ == "__main__":
    main(_main)
