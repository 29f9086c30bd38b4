"""Read a sweep file: every mistake in it is refused before anything starts."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from util.config import Config, load_config, with_class_names
from util.config.kinds import NonEmpty, Seeds
from util.config.load import lines_of
from util.config.validate import assign, check_together, nearest, shorten
from util.config.yaml_file import read_yaml
from util.runtime.errors import UserError

Overrides = dict[str, Any]
"""`Section.key` -> value."""

SET_BY_SWEEP = {
    **{"Data.split": "folds", "Train.seed": "seeds", "Train.save_path": "out"},
    **{"Method.pre_weight": "base_learner", "Train.resume": "nothing, runs go on by themselves"},
}
"""Key that no setting may give -> what to give in the sweep file instead."""

_Model = TypeVar("_Model", bound=BaseModel)


class SlurmOptions(BaseModel):
    """What each job asks Slurm for; sbatch has the same names, except for `cpus` and `gpus`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    partition: NonEmpty | None = None
    account: NonEmpty | None = None
    qos: NonEmpty | None = None
    constraint: NonEmpty | None = None
    time: Annotated[int, Field(ge=1)] = 1440  # minutes; a job that needs more is queued again
    mem: NonEmpty | None = None  # such as 32GB
    cpus: Annotated[int, Field(ge=1)] = 8
    gpus: Annotated[int, Field(ge=0, le=1)] = 1  # 0: the CPU
    save_seconds: Annotated[int, Field(ge=1)] = 180  # for saving, before the time is over


class Sweep(BaseModel):
    """A sweep file; docs/sweeps.md describes the keys. `{fold}` stands for the fold in paths."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    config: NonEmpty
    base_learner: NonEmpty
    out: NonEmpty
    folds: Seeds
    seeds: Seeds
    common: Overrides = {}
    settings: dict[str, Overrides | None] = {}
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    slurm: dict[str, Any] = {}


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; in the result, `axes` are expanded to `settings`.

    Raises `UserError` for the first mistake, in one line that names file and key.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: wants keys such as `config:`, given {shorten(content)}")
    lines = lines_of(path, path.read_bytes(), depth=3)
    sweep = validated(Sweep, content, str(path), lines)
    for name, values in (("folds", sweep.folds), ("seeds", sweep.seeds)):
        if len(set(values)) < len(values):
            raise UserError(f"{path}: {name} names {shorten(list(values))}; remove the repetition")
    if len(sweep.folds) > 1 and "{fold}" not in sweep.base_learner:
        mistake = "the folds would share one base learner; write {fold} in its path"
        raise UserError(f"{path}: base_learner: {mistake}")
    if bool(sweep.settings) == bool(sweep.axes):
        raise UserError(f"{path}: give settings, or axes whose product is taken; one of the two")
    settings = {name: words or {} for name, words in sweep.settings.items()}
    settings = settings or _product(sweep.axes, path)
    for name in settings:
        if not re.fullmatch(r"[\w.,=+-]+", name) or name in (".", ".."):
            mistake = f"the name {shorten(name)} is to be a folder"
            raise UserError(f"{path}: settings: {mistake}; use letters, digits and _ . , = + -")
    for key in (*sweep.common, *(key for words in settings.values() for key in words)):
        if instead := SET_BY_SWEEP.get(key):
            raise UserError(f"{path}: {key} is set by the sweep; give {instead}")
    return sweep.model_copy(update={"settings": settings, "axes": {}})


def validated(
    model: type[_Model], content: object, source: str, lines: Mapping[str, int] | None = None
) -> _Model:
    """Return a model of these values; raise `UserError` with `source` for the first mistake."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    line = (lines or {}).get(name)
    raise UserError(f"{source}:{line}: {_say(model, first)}" if line else
                    f"{source}: {_say(model, first)}")  # fmt: skip


def _say(model: type[BaseModel], error: ErrorDetails) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {name}; {nearest(name, model.model_fields)}"
    if error["type"] == "missing":
        return f"{name} is missing; docs/sweeps.md has an example"
    wanted = f"{error['msg'][0].lower()}{error['msg'][1:]}".replace("tuple", "list")
    return f"{name}: {wanted}, given {shorten(error['input'])}"


def _product(axes: Mapping[str, list[Any]], path: Path) -> dict[str, Overrides]:
    """Return a setting for each choice of one value of every key; the first values come first."""
    short = {key: key.rpartition(".")[2] for key in axes}
    if len(set(short.values())) < len(short):
        short = {key: key for key in axes}
    settings: dict[str, Overrides] = {}
    for values in product(*axes.values()):
        words = [f"{short[key]}={as_yaml(v)}" for key, v in zip(axes, values, strict=True)]
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(words))
        if name in settings:
            raise UserError(f"{path}: axes: two settings would have the name {name}")
        settings[name] = dict(zip(axes, values, strict=True))
    return settings


def config_of(sweep: Sweep, path: Path, setting: str, fold: int, more: Overrides) -> Config:
    """Return the config of a setting in a fold; `more` are the keys that the sweep sets.

    Raises `UserError` that names the sweep file and the setting, if a value is refused.
    """
    config = load_config(sweep.config.replace("{fold}", str(fold)))
    source = f"{path}: settings.{setting}"
    for place, words in ((f"{path}: common", sweep.common), (source, sweep.settings[setting])):
        for name, value in (words or {}).items():
            config = assign(config, name, value, place)
    for name, value in more.items():
        config = assign(config, name, value, str(path))
    check_together(config, source)
    if config.Eval.protocol != "fss" or config.Eval.way != 1:
        mistake = "the table of a sweep has one-way scores; remove Eval.protocol and Eval.way"
        raise UserError(f"{source}: {mistake}, and test the runs with them after it")
    return with_class_names(config)


def as_words(overrides: Mapping[str, Any]) -> Iterable[str]:
    """Return overrides as words of a command line, which give the same values."""
    return (f"{name}={as_yaml(value)}" for name, value in overrides.items())


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
