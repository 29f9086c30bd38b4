"""Measures how fast a config's images come.

    python -m util.bench.data config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

prints images per second of processor time, of one core, for plain decoding, for decoding with the
mask, out of the cache (in a folder that is removed again), and ready for the network; then what the
loader gives with `Data.workers` processes, per second of the clock.
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
from torch.utils.data import DataLoader

from util.config import Config
from util.data.dataset import EpisodeDataset, collate, open_episodes
from util.data.image_io import read_image
from util.runtime.cli import main

IMAGES = 100
"""Images of each row, the first of the fold's list."""


def per_second(call: Callable[[str], object], names: list[str]) -> float:
    """Returns images per second of processor time, after one round to warm up the files."""
    for name in names:
        call(name)
    start = time.process_time()
    for name in names:
        call(name)
    return len(names) / (time.process_time() - start)


def loader_rate(episodes: EpisodeDataset, workers: int, batch_size: int) -> float:
    """Returns images per second of the clock that a loader gives, its start left out."""
    shots = episodes.sampler.shot
    batches = 3 + 4 * max(1, workers)
    loader = DataLoader(
        episodes, batch_size, sampler=range(batches * batch_size), collate_fn=collate,
        num_workers=workers,
    )  # fmt: skip
    arrivals = [time.monotonic() for _ in loader]
    took = arrivals[-1] - arrivals[2]
    return (batches - 3) * batch_size * (1 + shots) / took


def rates(cfg: Config, train: EpisodeDataset) -> dict[str, float]:
    """Images per second of one core, by what is done with them."""
    names, rng = train.sampler.fold.images[:IMAGES], np.random.default_rng(0)
    source = train.source
    found = {
        "cv2.imread": per_second(lambda n: cv2.imread(str(source.image_path(n))), names),
        "image as RGB": per_second(lambda n: read_image(source.image_path(n)), names),
        "image and mask": per_second(source.decode, names),
    }
    with tempfile.TemporaryDirectory() as folder:
        data = replace(cfg.Data, cache=folder)
        cached, _ = open_episodes(replace(cfg, Data=data), "train", cfg.Train.seed)
        found["image and mask, Data.cache"] = per_second(cached.source.load, names)
        ready = "augmented" if cfg.Data.augment else "resized"
        found[f"{ready} to {cfg.Data.size} px"] = per_second(
            lambda n: train.load_pair(n, rng), names
        )
        found[f"{ready} to {cfg.Data.size} px, Data.cache"] = per_second(
            lambda n: cached.load_pair(n, rng), names
        )
    return found


def _main() -> None:
    cfg = config_argument(__doc__)
    train, _ = open_episodes(cfg, "train", cfg.Train.seed)
    for what, rate in rates(cfg, train).items():
        print(f"{what:36}{rate:8.0f} images/s of one core", flush=True)
    rate = loader_rate(train, cfg.workers, cfg.Train.batch_size)
    print(f"{f'loader, {cfg.workers} processes':36}{rate:8.0f} images/s")


if __name__ == "__main__":
    main(_main)
