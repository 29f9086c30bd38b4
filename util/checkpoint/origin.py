"""What a checkpoint was trained on, as the configs in it say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from util.class_names import canonical_name
from util.config import KEYS, Config, config_from
from util.config.schema import SECTIONS
from util.data.leaks import Trained
from util.folds import fold_of
from util.runtime.errors import UserError


def require_unseen(state: dict[str, Any], path: Path, cfg: Config) -> None:
    """Raise `UserError` if a checkpoint was trained on a class that the config tests as novel.

    This holds for both of its stages. The base classes must be those of the config, too, or else
    their labels would be wrong. A stage without a config (published weights) is accepted, one with
    an unreadable config is not.
    """
    tested = fold_of(cfg.Data)
    names = [tested.names[c - 1] for c in tested.novel]
    stages = (("stage one of it", state.get("base_learner") or {}), ("it", state))
    for stage, record in stages:
        trained = trained_config(record, path)
        if trained is None:
            continue
        seen = set(map(canonical_name, fold_of(trained.Data).learned.base_names))
        if leaked := [name for name in names if canonical_name(name) in seen]:
            mistake = f"{stage} was trained on {', '.join(leaked)}, novel classes of this config"
            remedy = "give the config of the fold that it was trained on, or another checkpoint"
            raise UserError(f"{path}: {mistake}; {remedy}")
        require_base_classes(trained, cfg, str(path))


def validated_alike(state: Mapping[str, Any], path: Path, cfg: Config) -> bool:
    """Return whether the scores in a checkpoint are of the classes that the config validates on."""
    trained = trained_config(state, path)
    if trained is None:
        return False
    theirs, ours = (fold_of(each.Data) for each in (trained, cfg))
    names = [{fold.names[c - 1] for c in fold.classes("val")} for fold in (theirs, ours)]
    return names[0] == names[1] and trained.Data.data_set == cfg.Data.data_set


def require_base_classes(trained: Config, cfg: Config, path: str) -> None:
    """Raise `UserError` if a config that was trained with has other base classes than `cfg`."""
    theirs, ours = (fold_of(each.Data).learned.base_names for each in (trained, cfg))
    if theirs != ours:
        other = next((n for n in theirs if n not in ours), "the same ones in another order")
        mistake = f"was trained on other base classes than those of this config ({other})"
        remedy = "give the config of its training; to test it on other data: Data.trained_on=other"
        raise UserError(f"{path}: {mistake}; {remedy}")


def trained_config(state: Mapping[str, Any], path: str | Path) -> Config | None:
    """Return the config that a checkpoint was trained with; None if it holds none.

    Keys of later versions are left out. Raises `UserError` if the config is unreadable.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: what it says of its training is no record; name another file")
    if "config" not in state:
        return None
    config = state["config"]
    if not isinstance(config, Mapping) or not isinstance(config.get("Data"), Mapping):
        raise UserError(f"{path}: its config does not say what was trained on; name another file")
    known = {
        section: {key: value for key, value in keys.items() if f"{section}.{key}" in KEYS}
        for section, keys in config.items()
        if section in SECTIONS and isinstance(keys, Mapping)
    }
    return config_from(known, str(path))


def training_of_stages(
    state: Mapping[str, Any], path: str | Path
) -> tuple[Trained | None, Trained | None]:
    """Return how stage one and stage two of a checkpoint were trained; None: it does not say.

    Raises `UserError` if a config in it is unreadable.
    """
    return _trained(state.get("base_learner") or {}, path), _trained(state, path)


def _trained(record: Mapping[str, Any], path: str | Path) -> Trained | None:
    config = trained_config(record, path)
    return Trained(config, record.get("images")) if config else None


def with_known_classes(cfg: Config, state: Mapping[str, Any], path: Path) -> Config:
    """Fill `Data.known` of a test on another data set with the base classes of a checkpoint.

    Raises `UserError` if neither of them names the classes, or they differ.
    """
    if cfg.Data.trained_on != "other":
        return cfg
    trained, known = trained_config(state, path), cfg.Data.known
    if trained is None and not known:
        mistake = "does not say on which classes it was trained"
        raise UserError(f"{path}: {mistake}; name them in Data.known, in the order of its channels")
    if trained is not None:
        known = fold_of(trained.Data).learned.base_names
    if cfg.Data.known not in ((), known):
        mistake = f"was trained on {', '.join(known)}, which are not those of Data.known"
        raise UserError(f"{path}: {mistake}; remove Data.known")
    return replace(cfg, Data=replace(cfg.Data, known=known))
