"""What a sweep has to run, and what has run already."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from util.config import Config, to_dict
from util.report.compare import FILES
from util.report.table import BESIDE
from util.reproduce.compare import Tree, numeric_keys, tree_differences
from util.reproduce.environment import file_hash
from util.reproduce.verify import read_result
from util.runtime.errors import UserError
from util.sweep.spec import Sweep, as_words, config_of

LOG = "sweep.log"
TEST_ONLY = frozenset({"Eval.seeds", "Eval.episodes", *BESIDE})
"""Keys with which a trained run can be tested again."""

_OF_EPISODES = frozenset(
    f"Data.{name}"
    for name in (
        *(
            "mix_weights",
            "shot",
            "class_balance",
            "same_query",
            "absent",
            "absent_supports",
            "own_view",
            "size",
        ),
        *("augment", "flip", "crop", "scale", "rotate", "ann_type"),
    )
)
_OF_STAGE_ONE = ("Base.", "Data.", "Speed.", "Method.backbone", "Method.pretrained")


@dataclass(frozen=True, eq=False)
class Unit:
    """What one process at a time works on: a base learner, or a run with its test.

    `name` is for messages, `folder` that of the run, with its log. `words` are the overrides of
    `cfg` over the file `config`, for each script of `scripts`.
    """

    name: str
    folder: Path
    config: str
    words: tuple[str, ...]
    cfg: Config
    scripts: tuple[str, ...]

    @property
    def log(self) -> Path:
        """File that gets everything that the scripts print."""
        return self.folder / LOG

    def last_line(self) -> str:
        """Return the last line of the log that is not empty."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")

    def is_finished(self) -> bool:
        """Return whether there is nothing left to do."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `UserError` if the folder holds another run than this one."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return the score of a finished unit, as a message shows it."""
        raise NotImplementedError


class BaseLearner(Unit):
    """Stage one of a fold."""

    @cached_property
    def target(self) -> Path:
        """File of the base learner."""
        return Path(self.cfg.Method.pre_weight)

    def is_finished(self) -> bool:
        """Return whether the file is there."""
        return self.target.is_file()

    def summary(self) -> str:
        """Return where it is."""
        return f"written to {self.target}"

    def check(self) -> None:
        """Raise `UserError` if the folder is of another stage one."""
        config = _recorded(self.folder)
        if changed := tree_differences(stage_one_keys(config), stage_one_keys(to_dict(self.cfg))):
            mistake = f"is of another stage one ({'; '.join(changed)})"
            raise UserError(f"{self.folder}: {mistake}; give base_learner another path")


@dataclass(frozen=True, eq=False)
class Run(Unit):
    """Stage two and the test of a setting, a fold and a training seed."""

    setting: str
    fold: int
    base: BaseLearner

    @property
    def result(self) -> Path:
        """File that the test writes."""
        return self.folder / "result.json"

    @property
    def records(self) -> Path | None:
        """File with the episodes of the test, if there is one."""
        return next((p for name in FILES if (p := self.folder / name).is_file()), None)

    def is_finished(self) -> bool:
        """Return whether the test of this config and of this checkpoint is done."""
        if not self.result.is_file() or not self.records:
            return False
        found = read_result(self.result, ("config", "checkpoint", "checkpoint_sha256"))
        checkpoint = Path(found["checkpoint"])
        return (
            not tree_differences(numeric_keys(found["config"]), numeric_keys(to_dict(self.cfg)))
            and checkpoint.is_file()
            and file_hash(checkpoint) == found["checkpoint_sha256"]
        )

    def summary(self) -> str:
        """Return the scores of the test."""
        summary = read_result(self.result, ("summary",))["summary"]
        return f"mIoU {summary['final mIoU']['mean']:.2f}, meta {summary['meta mIoU']['mean']:.2f}"

    def check(self) -> None:
        """Raise `UserError` if the folder is of another setting."""
        then, now = numeric_keys(_recorded(self.folder)), numeric_keys(to_dict(self.cfg))
        if changed := tree_differences(then, now, TEST_ONLY):
            mistake = f"holds a run of another setting ({'; '.join(changed)})"
            raise UserError(f"{self.folder}: {mistake}; move it away, or give out another folder")


def _recorded(folder: Path) -> Tree:
    """Return the config that a run has left in its folder; empty if there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_bytes())
    if not isinstance(content, dict):
        raise UserError(f"{path}: torn, or not a config; delete it")
    return content


def stage_one_keys(config: Tree) -> dict[str, Any]:
    """Return the keys of a config that can change the base learner, with their values."""
    keys = numeric_keys(config)
    return {
        name: value
        for name, value in keys.items()
        if name not in _OF_EPISODES
        and (name.startswith(_OF_STAGE_ONE) or name == "Train.seed_deterministic")
    }


def plan(sweep: Sweep, path: Path) -> list[Run]:
    """Return the runs of the sweep of a file; every config is checked.

    Settings with the same stage one share a base learner. Runs that a table needs together come
    together: all settings and folds of a seed.
    """
    bases: dict[Path, BaseLearner] = {}
    runs = []
    for seed in sweep.seeds:
        for fold in sweep.folds:
            first: dict[str, Any] = {}  # keys of stage one in the first setting
            for setting in sweep.settings:
                cfg = config_of(sweep, path, setting, fold, {"Data.split": fold})
                keys = stage_one_keys(to_dict(cfg))
                first = first or keys
                target = _base_learner_path(sweep, fold, first, keys)
                if target not in bases:
                    bases[target] = _base_learner(sweep, path, setting, fold, target)
                runs.append(_run(sweep, path, setting, fold, seed, bases[target]))
    return runs


def _base_learner_path(
    sweep: Sweep, fold: int, first: Mapping[str, Any], keys: Mapping[str, Any]
) -> Path:
    """Return the given path; for another stage one than the first setting's, a path of its own."""
    path = Path(sweep.base_learner.replace("{fold}", str(fold)))
    changed = {name: value for name, value in keys.items() if value != first.get(name)}
    if not changed:
        return path
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
    return path.with_name(f"{path.stem}_{digest[:8]}{path.suffix}")


def _base_learner(sweep: Sweep, path: Path, setting: str, fold: int, target: Path) -> BaseLearner:
    given = {"Data.split": fold, "Method.pre_weight": str(target), "Train.resume": "auto"}
    name = f"split{fold}: base learner {target.name}"
    return BaseLearner(
        name, target.with_suffix(""), *_command(sweep, path, setting, fold, given),
        ("train_base.py",),
    )  # fmt: skip


def _run(
    sweep: Sweep, path: Path, setting: str, fold: int, seed: int, base: BaseLearner
) -> Run:  # fmt: skip
    name = f"split{fold}/{setting}/seed{seed}"
    folder = Path(sweep.out, name)
    given = {"Data.split": fold, "Method.pre_weight": str(base.target), "Train.seed": seed}
    given |= {"Train.save_path": str(folder), "Train.resume": "auto"}
    return Run(
        name, folder, *_command(sweep, path, setting, fold, given), ("train.py", "test.py"),
        setting, fold, base,
    )  # fmt: skip


def _command(
    sweep: Sweep, path: Path, setting: str, fold: int, given: Mapping[str, Any]
) -> tuple[str, tuple[str, ...], Config]:
    """Return the config file, the overrides and the config that they make together."""
    cfg = config_of(sweep, path, setting, fold, dict(given))
    words = {**sweep.common, **(sweep.settings[setting] or {}), **given}
    return sweep.config.replace("{fold}", str(fold)), tuple(as_words(words)), cfg
