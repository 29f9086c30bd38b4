"""Test a trained model: several seeds, mean and standard deviation.

    sh test.sh split0 pascal 1
    sh test.sh split0 pascal 0 Eval.episodes=10 Eval.seeds=[321] Eval.weight=last
    sh test.sh split0 pascal 1 Data.shot=5 Eval.kshot=ensemble   # a 1-shot model, five supports

Prints a table and writes `result.json`, `episodes.parquet` (a row of each episode) and `test.log`
into the run's folder. `Eval.visualize=6`, which is `--visualize 6` of `python test.py`, also draws
episodes: `episodes.png` (evenly spread), `worst.png` and `best.png` (lowest and highest IoU).

`Eval.way` and `Eval.protocol` test several classes in one map (docs/protocol.md). Its file is then
`result_2way.json`, `result_gfss_bam.json` or `result_gfss_diam.json`.

A test that was stopped (Ctrl-C, SIGTERM, a power failure) goes on when the same command is typed.

    python test.py --verify exp/pascal/split0_resnet50/result.json

repeats the test of that file and compares; the exit status is 0 if every number is equal, else 2.
"""

from util.config.arguments import TEST_FLAGS, arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__, TEST_FLAGS)  # before torch, which takes seconds to import

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from model.backbones import pixel_statistics
from util import speed
from util.checkpoint import (
    checkpoint_path,
    read_checkpoint_once,
    require_unseen,
    trained_model,
    training_of_stages,
    with_known_classes,
)
from util.checkpoint.load import presence_threshold
from util.config import Config, to_dict
from util.config.schema import EvalSection
from util.data import open_episodes
from util.data.controls import ABSENT
from util.data.leaks import find_leaks, format_leaks
from util.evaluate import GALLERIES, Evaluator, draw_episodes, encode_strips
from util.evaluate.beside import (
    Beside,
    control_line,
    control_scores,
    control_table,
    episodes_beside,
)
from util.evaluate.by_set import scores_by_set, set_lines
from util.evaluate.presence import absent_line, absent_scores
from util.evaluate.protocols import open_evaluator
from util.evaluate.records import FORMATS, records_path, write_records
from util.evaluate.scores import add_confusions, format_table, summarize
from util.evaluate.tally import Row, Tally
from util.evaluate.unfinished import Unfinished
from util.reproduce import record_environment, verify
from util.runtime import Progress, RunStopped, Stop, atomic_write, distributed, main
from util.runtime.cost import peak_gb
from util.runtime.files import Outputs, free_name, require_alone
from util.runtime.log import add_log_file, log
from util.train.optimizers import count_parameters


def test() -> None:
    """Run the test."""
    cfg, gpus = arguments(__doc__, TEST_FLAGS)
    ranks = distributed.init(gpus)
    stop = Stop(ranks.is_main)
    path = checkpoint_path(cfg)
    state, sha256 = read_checkpoint_once(path)
    cfg = with_known_classes(cfg, state, path)
    require_unseen(state, path, cfg)
    model = trained_model(cfg, state, path)
    model.to(ranks.device)
    options = speed.set_up(model, cfg, ranks.device)
    statistics = pixel_statistics(cfg.Method.backbone)
    with distributed.main_first(ranks):  # rank 0 writes the fold lists
        episodes, report = open_episodes(cfg, "val", cfg.Eval.val_seed, *statistics)
    fold = episodes.sampler.fold
    leaks = find_leaks(fold, cfg.Data, *training_of_stages(state, path))
    evaluator = open_evaluator(model, episodes, cfg, ranks)
    record = {
        "checkpoint": str(path),
        "checkpoint_sha256": sha256,
        "iteration": state.get("iteration"),
        "environment": record_environment(cfg, ranks, {"val": fold}),
        "config": to_dict(cfg),
    }
    folder, earlier, rows_path = Path(cfg.Train.save_path), None, records_path(cfg, fold.images)
    if cfg.Eval.verify:
        earlier = verify.read_comparable(cfg.Eval.verify, record)
    elif ranks.is_main:
        open_log(folder)
    count, seeds = cfg.Eval.episodes, cfg.Eval.seeds
    beside = Beside()
    if isinstance(evaluator, Evaluator):
        beside = episodes_beside(episodes.sampler, count, seeds, shares_beside(cfg.Eval))
        order = todo = evaluator.order(count, seeds, beside.tasks)
    else:
        report += evaluator.report(count)
        order = todo = evaluator.order(count, seeds)
    for line in [*report, *options, count_parameters(model)]:
        log.info(line)
    log.info(
        f"{path}, iteration {state.get('iteration', '?')}: {len(seeds)} x {order.count} episodes"
    )

    tally: Tally = evaluator.tally(order)
    unfinished = Unfinished(folder, unfinished_key(record), ranks, tally)
    if not earlier:
        todo = unfinished.remaining(order)
    progress = Progress(todo.episodes, max(1, todo.episodes // 10), active=ranks.is_main)
    with stop:
        results = evaluator.run(
            todo,
            tally,
            on_progress=lambda done: progress.step(done, {}),
            on_group=None if earlier else unfinished.save_if_due,
            stop=lambda: stop.requested,
        )
        progress.close()
        if not results and earlier:
            raise RunStopped("the test was not finished, and nothing is compared")
        if not results:
            unfinished.stop()
        seconds, drawn, strips = unfinished.seconds, cfg.Eval.visualize, {}
        if drawn and isinstance(evaluator, Evaluator):
            strips = draw_episodes(evaluator, order, tally.rows, drawn, extremes=True)
    for seed, scores in results.items():
        log.info(f"seed {seed}: {scores.line()}")

    if ranks.is_main:
        log.info(format_table(results))
        log.info(format_leaks(leaks))
        by_seed = {str(seed): asdict(scores) for seed, scores in results.items()}
        # In the file, confusions are summed over the seeds.
        confusion = add_confusions(scores.pop("confusion") for scores in by_seed.values())
        result = record | {
            "summary": summarize(list(results.values())),
            "seeds": by_seed,
            "confusion": confusion,
            "leaks": leaks,
            **score_sets(cfg, tally.rows),
            **score_beside(tally.rows, beside, presence_threshold(state, path)),
            "cost": {
                "seconds": seconds,
                "episodes_per_s": len(tally.rows) / seconds,
                "peak_memory_gb": peak_gb(ranks.device),
            },
        }
        if earlier:
            verify.compare_results(cfg.Eval.verify, earlier, result, log.info)
        else:
            result_path = folder / evaluator.file_name
            keep = tested_episodes(result_path) > count * len(seeds)
            if isinstance(evaluator, Evaluator):
                write_rows(rows_path, tally.rows, record, keep)
                write_pictures(folder, strips)
            write_result(result_path, result, keep)
            unfinished.remove()
    distributed.close()


def shares_beside(options: EvalSection) -> dict[str, float]:
    """Return which episodes run beside the right ones: kind -> share."""
    shares = {str(kind): options.control_share for kind in options.control}
    return shares | ({ABSENT: options.absent} if options.absent else {})


def score_sets(cfg: Config, rows: list[Row]) -> dict:
    """Show and return the scores of each data set of a mix."""
    if not cfg.Data.mix:
        return {}
    scores = scores_by_set(rows)
    for line in set_lines(scores):
        log.info(line)
    return {"sets": scores}


def score_beside(rows: list[Row], beside: Beside, threshold: float | None) -> dict:
    """Show and return the scores of the episodes beside the right ones."""
    left_out = dict(beside.left_out)
    result: dict = {}
    if ABSENT in left_out:
        result["absent"] = absent_scores(rows, left_out.pop(ABSENT), threshold)
    controls = {kind: control_scores(rows, kind, count) for kind, count in left_out.items()}
    if controls:
        log.info(control_table(controls))
    for kind, scores in controls.items():
        log.info(control_line(kind, scores))
    if "absent" in result:
        log.info(absent_line(result["absent"]))
    return result | {"controls": controls}


def unfinished_key(record: dict) -> dict:
    """Return what tells this test from another one: all of its record but the machine."""
    environment = {k: v for k, v in record["environment"].items() if k != "machine"}
    return {"checkpoint_sha256": record["checkpoint_sha256"], "environment": environment}


def tested_episodes(path: Path) -> float:
    """Return how many episodes the result of an earlier test holds; 0 if there is none."""
    try:
        options = json.loads(path.read_bytes())["config"]["Eval"]
        return options["episodes"] * len(options["seeds"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):  # something else, which is not ours to replace
        return math.inf


def name_of_earlier(path: Path, keep: bool) -> Path | None:
    """Return the name under which a file of an earlier test is kept; None if it is replaced."""
    if not keep or not path.exists():
        return None
    kept = free_name(path)
    log.info(f"the earlier test has more episodes; its {path.name} is kept: {kept}")
    return kept


def write_rows(path: Path, rows: list[Row], record: dict, keep: bool) -> None:
    """Write a row of each episode; remove, or keep, the file of an earlier test."""
    facts = ("checkpoint_sha256", "iteration", "config")
    lists = record["environment"]["lists"]
    meta = {name: record[name] for name in facts} | {"fold": lists}
    write_records(path, rows, meta, name_of_earlier(path, keep))
    log.info(f"written: {path}")
    for other in (path.with_suffix(f".{suffix}") for suffix in FORMATS):
        if other != path and (kept := name_of_earlier(other, keep)):
            other.rename(kept)
        elif other != path:
            other.unlink(missing_ok=True)


def open_log(folder: Path) -> None:
    """Write this test's messages to `test.log`, too."""
    folder.mkdir(parents=True, exist_ok=True)
    require_alone(folder, "Train.save_path", "test")
    add_log_file(folder / "test.log")


def write_result(path: Path, result: dict, keep: bool) -> None:
    """Write the result; that of an earlier test is replaced, or kept."""
    content = json.dumps(result, indent=1, allow_nan=False).encode()
    atomic_write(path, content, keep=name_of_earlier(path, keep))
    log.info(f"written: {path}")


def write_pictures(folder: Path, strips: dict[str, list[np.ndarray]]) -> None:
    """Write the pictures; remove those of an earlier test. Pictures of anyone else are kept."""
    outputs = Outputs(folder, "test", "Train.save_path")
    for name in GALLERIES:
        path, is_ours = folder / f"{name}.png", outputs.may_replace(f"{name}.png")
        if not is_ours and name in strips:
            path.rename(kept := free_name(path))
            log.info(f"this test did not draw {path.name}, which is kept: {kept}")
        if name in strips:
            outputs.write(path.name, encode_strips(strips[name]))
            log.info(f"written: {path}")
        elif is_ours:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(test)
