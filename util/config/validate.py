"""What a config may say: the value of one key, of all keys together, and what a typo meant.

Every mistake is a `ValueError` of one line that names its source (a file with its line, or the
command line), the key, and the remedy.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from util.config.schema import Config
from util.folds import FOLDS, fold_of
from util.runtime.errors import UserError

SECTIONS: dict[str, type] = {f.name: type(f.default) for f in fields(Config)}
KEYS: dict[str, Field] = {
    f"{name}.{f.name}": f for name, section in SECTIONS.items() for f in fields(section)
}


def checked(source: str, name: str, value: Any) -> Any:
    """The value in the type of its key; `source` is the file or the command line it came from."""
    if name not in KEYS:
        raise UserError(f"{source}: unknown key {name}; {key_hint(name)}")
    default, limits = KEYS[name].default, KEYS[name].metadata
    if not isinstance(default, tuple):
        return _checked_one(source, name, value, type(default), limits)
    if "kind" in limits:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{source}: {name} wants a list, given {shown(value)}")
        return tuple(_checked_one(source, name, element, limits["kind"], {}) for element in value)
    kind = type(default[0])
    length = None if "many" in limits else len(default)
    if not isinstance(value, (list, tuple)) or not value or (length and len(value) != length):
        wanted = f"a list of {length or 'one or more'} {_KINDS[kind][1]}"
        raise UserError(f"{source}: {name} wants {wanted}, given {shown(value)}")
    return tuple(_checked_one(source, name, element, kind, limits) for element in value)


_KINDS = {
    bool: ("true or false", ""),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", ""),
}


def _checked_one(source: str, name: str, value: Any, kind: type, limits: Mapping[str, Any]) -> Any:
    given = value
    if kind is str and value is None:
        value = ""
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # PyYAML reads 2e-4, which has no dot, as text
        except (ValueError, OverflowError):
            value = None
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{source}: {name} wants {_KINDS[kind][0]}, given {shown(given)}")
    wanted = ""
    if "choices" in limits and value not in limits["choices"]:
        wanted = " or ".join(choice or "''" for choice in limits["choices"])
    elif "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        wanted = KEYS[name].metadata["help"]
    elif "low" in limits and value < limits["low"]:
        wanted = f"at least {limits['low']}"
    elif "high" in limits and value > limits["high"]:
        wanted = f"at most {limits['high']}"
    elif "above" in limits and value <= limits["above"]:
        wanted = f"more than {limits['above']}"
    if wanted:
        raise UserError(f"{source}: {name} wants {wanted}, given {shown(given)}")
    return value


def check_together(config: Config, source: str) -> None:
    """What single limits cannot say. An option that would have no effect is a mistake too."""
    for wrong, message in (*_of_data(config), *_of_training(config)):
        if wrong:
            raise UserError(f"{source}: {message}")
    try:
        fold_of(config.Data)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _of_data(config: Config) -> list[tuple[bool, str]]:
    """Whether it is so, and what is wrong then: classes, folds, sizes."""
    data, base = config.Data, config.Base
    custom = data.data_set == "custom"
    return [
        (
            not custom and data.split >= FOLDS,
            f"Data.split wants at most {FOLDS - 1}, given {data.split}",
        ),
        (
            not custom and bool(data.classes or data.novel),
            "Data.classes and Data.novel have no effect without Data.data_set custom; remove them",
        ),
        (custom and not data.novel, "Data.novel wants the classes that this fold holds out"),
        (
            custom and not set(data.classes) - set(data.novel),
            "Data.novel leaves no class to train on",
        ),
        (data.size % 8 != 1, _size("Data.size", data.size)),
        (base.size % 8 != 1, _size("Base.size", base.size)),
        (data.scale[0] > data.scale[1], "Data.scale wants the smaller number first"),
        (base.scale[0] > base.scale[1], "Base.scale wants the smaller number first"),
        (
            bool(data.trained_on) and data.data_set != "pascal",
            "Data.trained_on coco is for Data.data_set pascal; set it, or remove Data.trained_on",
        ),
        (
            not data.use_split_coco and "coco" not in (data.data_set, data.trained_on),
            "Data.use_split_coco False has no effect without Data.data_set coco; remove it",
        ),
        (
            data.flip and data.augment,
            "Data.flip has no effect beside Data.augment, which mirrors already; remove one",
        ),
    ]


def _of_training(config: Config) -> list[tuple[bool, str]]:
    """Whether it is so, and what is wrong then: the network, both stages, seeds."""
    data, method, train = config.Data, config.Method, config.Train
    return [
        (
            method.pretrained == "package" and method.backbone != "timm/tf_efficientnet_lite0",
            "Method.pretrained package has weights of timm/tf_efficientnet_lite0 only; for "
            f"{method.backbone} write download, none or a file",
        ),
        (
            method.train_parts and not train.adversarial,
            "Method.train_parts has no effect without the game; set Train.adversarial True",
        ),
        (
            method.train_kshot and data.shot == 1,
            "Method.train_kshot has no effect with one shot; set Data.shot or remove it",
        ),
        (
            train.adversarial_period % 2 == 0,
            f"Train.adversarial_period must be odd, given {train.adversarial_period}: with an even "
            "one all the weighted iterations are D steps",
        ),
        (
            train.feature_store and data.augment,
            "Train.feature_store keeps features of images as they are; set Data.augment False",
        ),
        (
            train.accumulate > train.batch_size,
            f"Train.accumulate {train.accumulate}: the batch has {train.batch_size} episodes; make "
            "it less",
        ),
        (
            train.seed_deterministic and config.Speed.cudnn_benchmark,
            "Speed.cudnn_benchmark picks kernels by their time, Train.seed_deterministic wants the "
            "same ones; remove one",
        ),
        (
            len(set(config.Eval.seeds)) < len(config.Eval.seeds),
            "Eval.seeds names a seed twice; remove one",
        ),
    ]


def _size(name: str, given: int) -> str:
    return f"{name} must be 1 mod 8, given {given}; the nearest is {round((given - 1) / 8) * 8 + 1}"


def key_hint(name: str) -> str:
    """Says which key `Section.key` may have meant: one of that name elsewhere, or the nearest."""
    section, _, last = name.rpartition(".")
    meant = difflib.get_close_matches(section.lower(), [word.lower() for word in SECTIONS], n=1)
    inside = {
        known.partition(".")[2].lower(): known
        for known in KEYS
        if not section or meant and known.lower().startswith(f"{meant[0]}.")
    }
    if section and last.lower() in inside:
        return f"did you mean {inside[last.lower()]}?"
    namesakes = [known for known in KEYS if known.lower().endswith(f".{last.lower()}")]
    if namesakes:
        return f"did you mean {' or '.join(namesakes)}?"
    if section in SECTIONS or difflib.get_close_matches(last.lower(), inside, n=1):
        return nearest(last, inside)
    return nearest(section, {word: word for word in SECTIONS})


def nearest(word: str, known: dict[str, str]) -> str:
    """`did you mean X?`, or all there is; `known`: what may be written -> how to show it."""
    lower = {name.lower(): shown for name, shown in known.items()}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    return f"did you mean {lower[close[0]]}?" if close else f"there is {', '.join(known.values())}"


def shown(value: Any) -> str:
    """The value as a message shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
