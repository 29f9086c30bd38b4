"""The table of a sweep: settings x folds, and the difference to the first setting."""

import math
import statistics
from collections.abc import Mapping, Sequence

from util.report import bootstrap, compare
from util.report.compare import Setting
from util.report.table import Difference, Row, fill, group_of
from util.runtime.errors import UserError
from util.runtime.log import log
from util.sweep.plan import Run

KINDS = ("final", "meta")


def sweep_rows(runs: Sequence[Run], folds: Sequence[int], reference: str) -> list[Row]:
    """Return a row for each setting of finished runs: the final scores, then those of meta.

    Each setting is compared with the setting `reference`. One that was tested on other episodes,
    with more supports for example, has no difference; a warning says so. Raises `UserError` if a
    record of episodes is torn.
    """
    settings = _read(runs)
    first = settings.get(reference, {})
    alike = {name for name, of_folds in settings.items() if _has_same_episodes(first, of_folds)}
    rows = []
    for scored in KINDS:
        for name, of_folds in settings.items():
            tested = [run for setting in of_folds.values() for run in setting.runs]
            data, shot, backbone, method = group_of(tested[0].result)
            title = name if scored == "final" else f"{name}, meta"
            results = [(run.folder / "result.json", run.result) for run in tested]
            row = fill(Row(data, backbone, shot, title, method=method), results, folds, scored)
            if name != reference and name in alike:
                row.difference = difference(first, of_folds, folds, scored)
            rows.append(row)
    return rows


def _read(runs: Sequence[Run]) -> dict[str, dict[int, Setting]]:
    """Return setting -> fold -> the tested runs, which differ in the training seed."""
    settings: dict[str, dict[int, Setting]] = {}
    for run in runs:
        assert run.records, "a finished run has a record of its episodes"
        tested = compare.read_run(run.records)
        of_folds = settings.setdefault(run.setting, {})
        of_folds.setdefault(run.fold, Setting(run.setting, [])).runs.append(tested)
    return settings


def _has_same_episodes(first: Mapping[int, Setting], second: Mapping[int, Setting]) -> bool:
    """Return whether all runs were tested on the same episodes; warn if not."""
    try:
        for fold in first.keys() & second.keys():
            for run in second[fold].runs:
                compare.require_same_episodes(first[fold].runs[0], run)
    except UserError as error:
        log.warning("no difference: %s", error)
        return False
    return True


def difference(
    first: Mapping[int, Setting], second: Mapping[int, Setting], folds: Sequence[int], scored: str
) -> Difference | None:
    """Return the difference of mIoU in points, the mean over the folds, with its 95 % interval.

    None if a fold is missing. The interval is that of `util.report.bootstrap` for new query images
    and, if every fold has three runs or more, new training seeds. Folds have other test images and
    other base classes, so their errors are taken to be independent.
    """
    if any(fold not in side for fold in folds for side in (first, second)):
        return None
    found = []
    for fold in folds:
        _, episodes = compare.episodes_of(first[fold].runs[0].table)
        sides = [side[fold].pixels(scored) for side in (first, second)]
        found.append(bootstrap.compare(episodes, *sides))
    mean = 100 * statistics.fmean(part.value[0] for part in found)
    halves = [part.half_seeds for part in found if part.half_seeds is not None]
    if len(halves) < len(found):
        halves = [part.half for part in found]
    half = 100 * math.hypot(*(each[0] for each in halves)) / len(folds)
    return mean, (mean - half, mean + half) if math.isfinite(half) else None
