"""The table of a sweep: settings x folds, and the difference to the first setting."""

import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

from util.report.runs import read_result
from util.report.table import Difference, Result, Row, fill, group_of
from util.sweep.plan import Run


def sweep_rows(runs: Sequence[Run], folds: Sequence[int], reference: str) -> list[Row]:
    """Return a row for each setting of finished runs: the final scores, then those of meta.

    Each setting is compared with the setting `reference`.
    """
    results: dict[str, list[Result]] = {}
    for run in runs:
        results.setdefault(run.setting, []).append((run.result, read_result(run.result)))
    rows = []
    for scored in ("final", "meta"):
        first = _by_seed(results.get(reference, []), scored)
        for setting, found in results.items():
            named = setting if scored == "final" else f"{setting}, meta"
            data, shot, backbone = group_of(found[0][1])
            row = fill(Row(data, backbone, shot, named), found, folds, scored)
            if setting != reference:
                row.difference = _difference(_by_seed(found, scored), first)
            rows.append(row)
    return rows


def _by_seed(results: Sequence[Result], scored: str) -> dict[int, dict[int, float]]:
    """Return training seed -> fold -> mIoU, the mean over the seeds of the test."""
    scores: dict[int, dict[int, float]] = {}
    for _, result in results:
        config, tests = result["config"], result["seeds"].values()
        miou = statistics.fmean(test[scored]["miou"] for test in tests)
        scores.setdefault(config["Train"]["seed"], {})[config["Data"]["split"]] = miou
    return scores


def _difference(
    scores: Mapping[int, Mapping[int, float]], first: Mapping[int, Mapping[int, float]]
) -> Difference | None:
    """Return the difference over the training seeds that have the same folds in both."""
    pairs = [
        (scores[seed], first[seed])
        for seed in scores.keys() & first.keys()
        if scores[seed].keys() == first[seed].keys()
    ]
    if not pairs:
        return None
    return t_interval([statistics.fmean(a[fold] - b[fold] for fold in a) for a, b in pairs])


def t_interval(values: Sequence[float]) -> Difference:
    """Return mean and 95 % interval of differences by Student's t; of one, there is no interval."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None
    error = statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, (mean - half, mean + half)
