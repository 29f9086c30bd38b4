"""The difference in the table of a sweep, against the comparison of each fold."""

from pathlib import Path

import numpy as np
import pytest
from helpers.simulated import Pair, draw
from helpers.tested_runs import write_tested_run

from util.report import bootstrap, compare
from util.report.compare import Setting
from util.sweep.table import difference


def settings(folder: Path, pair: Pair, runs: tuple[int, int]) -> list[Setting]:
    """Write the runs of a fold, and read them as two settings."""
    found = []
    for name, pixels, count in zip(("a", "b"), (pair.first, pair.second), runs, strict=True):
        paths = [folder / f"{name}{seed}" for seed in range(count)]
        for seed, path in enumerate(paths):
            path.mkdir(parents=True)
            write_tested_run(path, pair.episodes, pixels[seed], f"Train.seed={seed}")
        read = [compare.read_run(path / "episodes.parquet") for path in paths]
        found.append(Setting(name, read))
    return found


@pytest.mark.parametrize("runs", [(2, 2), (1, 1)])
def test_difference_is_the_mean_over_folds_and_their_errors_add_as_independent_ones(
    runs: tuple[int, int], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pairs = [draw(rng, 60, runs=runs, seed_effect=0.2) for _ in range(2)]
    folds = [settings(tmp_path / str(n), pair, runs) for n, pair in enumerate(pairs)]
    first, second = ({fold: sides[i] for fold, sides in enumerate(folds)} for i in (0, 1))
    mean, interval = difference(first, second, [0, 1], "final")
    found = [bootstrap.compare(*pair) for pair in pairs]
    kind = "half" if runs == (1, 1) else "half_seeds"
    halves = [100 * getattr(part, kind)[0] for part in found]
    half = (halves[0] ** 2 + halves[1] ** 2) ** 0.5 / 2
    assert mean == pytest.approx(50 * (found[0].value[0] + found[1].value[0]))
    assert interval == pytest.approx((mean - half, mean + half))


def test_difference_is_empty_until_every_fold_is_there(tmp_path: Path) -> None:
    pair = draw(np.random.default_rng(1), 60)
    a, b = settings(tmp_path, pair, (1, 1))
    assert difference({0: a}, {0: b}, [0, 1], "final") is None
    assert difference({0: a, 1: a}, {0: b}, [0, 1], "final") is None
    mean, interval = difference({0: a}, {0: a}, [0], "meta")
    assert (mean, interval) == (0, (0, 0))
