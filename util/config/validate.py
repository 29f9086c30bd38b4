"""Checks of a config: the value of one key, of all keys together, and hints about typing errors.

A mistake is a `UserError` of one line that names its source (a file with the line, or the command
line), the key, what it wants, and what was given.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from pydantic import TypeAdapter, ValidationError

from util.config.schema import KEYS, SECTIONS, Config, facts_of
from util.folds import FOLDS, OWN_CLASSES, fold_of, mixed_sets
from util.runtime.errors import UserError


def assign(config: Config, name: str, value: Any, source: str) -> Config:
    """Return the config with the value that YAML gives for the key `Section.key`.

    Raises `UserError`, which names `source`, where the value was read, if the key is unknown, or
    the value is of another type or outside its limits.
    """
    if name not in KEYS:
        raise UserError(f"{source}: unknown key {name}; {key_hint(name)}")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{source}: {name} holds the character NUL; remove it")
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, int) and abs(number) >= 1 << 63 for number in numbers):
        raise UserError(f"{source}: {name} holds a number of 19 digits or more; use a smaller one")
    section, _, key = name.partition(".")
    try:
        return replace(config, **{section: replace(getattr(config, section), **{key: value})})
    except ValidationError:
        wanted = describe(json_schema(section)[key])
        raise UserError(f"{source}: {name} wants {wanted}, given {shorten(value)}") from None


def json_schema(section: str) -> dict[str, Any]:
    """Return the JSON schema of each key of a section."""
    return TypeAdapter(SECTIONS[section]).json_schema()["properties"]


def describe(schema: Mapping[str, Any]) -> str:
    """Say which values a JSON schema admits, such as "an integer, at least 1"."""
    if choices := schema.get("enum", schema.get("examples")):
        shown = [choice or "''" for choice in choices]
        return f"{', '.join(shown[:-1])} or {shown[-1]}"
    if "anyOf" in schema:
        return ", or ".join(map(describe, schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    words = _TYPES[schema["type"]]
    if schema["type"] == "array":
        each = schema.get("items") or schema["prefixItems"][0]
        count = schema.get("maxItems") or ("one or more" if "minItems" in schema else "")
        return f"{words}{count and f' of {count}'}, each {describe(each)}"
    bounds = [f"{text} {schema[name]:g}" for name, text in _BOUNDS.items() if name in schema]
    bounds += ["not empty"] if "pattern" in schema else []
    return ", ".join([words, " and ".join(bounds)] if bounds else [words])


_TYPES = {
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "array": "a list",
}
_BOUNDS = {
    **{"minimum": "at least", "exclusiveMinimum": "above"},
    **{"maximum": "at most", "exclusiveMaximum": "below"},
}


def check_together(config: Config, source: str) -> None:
    """Raise `UserError` for the first keys that do not go together, or that have no effect."""
    parts = _mistakes_in_data, _mistakes_in_training, _mistakes_in_system
    for mistake in chain.from_iterable(find(config) for find in parts):
        raise UserError(f"{source}: {mistake}")


def _mistakes_in_data(config: Config) -> Iterator[str]:
    data, base = config.Data, config.Base
    of_other = data.trained_on == "other"
    if data.data_set not in OWN_CLASSES:
        if data.split >= FOLDS:
            yield f"Data.split wants at most {FOLDS - 1}, given {data.split}"
        if data.classes or data.base or data.novel and not of_other:
            keys = "Data.classes, Data.novel and Data.base"
            yield f"{keys} have no effect without data_set custom or mix; remove them"
    yield from _mistakes_in_mix(config)
    if data.base and of_other:
        yield "Data.base has no effect with trained_on other; Data.known names the base classes"
    if (data.known or data.overlap != "refuse") and not of_other:
        yield "Data.known and Data.overlap have no effect without trained_on other; remove them"
    # The names of a custom data set may be in a file, see `with_class_names`.
    is_named = bool(data.classes) if data.data_set in OWN_CLASSES else of_other
    if is_named and (data.novel or of_other):
        try:
            fold_of(data)
        except UserError as error:
            yield str(error)
    for name, size in config.sizes.items():
        for side in size:
            if side % 8 != 1:
                nearest_side = (side + 3) // 8 * 8 + 1
                yield f"{name} must be 1 mod 8, given {side}; the nearest is {nearest_side}"
    for name, (low, high) in (
        ("Data.scale", data.scale),
        ("Base.scale", base.scale),
        ("Data.crop", data.crop),
    ):
        if low > high:
            yield f"{name} wants the smaller number first, given [{low:g}, {high:g}]"
    if data.trained_on == "coco" and data.data_set != "pascal":
        yield "Data.trained_on coco needs Data.data_set pascal; set it, or remove Data.trained_on"
    if not data.use_split_coco and "coco" not in (data.data_set, data.trained_on):
        yield "Data.use_split_coco false has no effect without Data.data_set coco; remove it"
    if data.flip and data.augment:
        yield "Data.flip has no effect with Data.augment, which flips, too; remove one of them"
    if len(set(config.Eval.seeds)) < len(config.Eval.seeds):
        yield "Eval.seeds names a seed twice; remove one"
    yield from _mistakes_in_protocol(config)
    if len(set(config.Eval.control)) < len(config.Eval.control):
        yield "Eval.control names a control twice; remove one"
    if 0 < config.Eval.support_zoom < 1:
        zoom = f"{config.Eval.support_zoom:g}"
        yield f"Eval.support_zoom wants 0 or at least 1, given {zoom}: less would cut the object"
    if config.Eval.support_zoom and "shuffled_mask" in config.Eval.control:
        what = "the mask is of another image there, and cannot say where the object is"
        yield f"Eval.support_zoom does not go with the control shuffled_mask: {what}; remove one"


def _mistakes_in_mix(config: Config) -> Iterator[str]:
    data = config.Data
    if data.data_set != "mix":
        if data.mix or data.mix_weights:
            yield "Data.mix and Data.mix_weights need Data.data_set mix; set it, or remove them"
        return
    if not data.mix:
        yield "Data.data_set mix needs Data.mix: name its data sets, such as [custom:data/mine]"
    try:
        mixed_sets(data.mix)
    except UserError as error:
        yield str(error)
    if data.mix_weights and (len(data.mix_weights) != len(data.mix) or not any(data.mix_weights)):
        yield f"Data.mix_weights wants {len(data.mix)} numbers, one of each set, not all of them 0"
    if data.trained_on:
        yield "Data.trained_on needs one data set; test each set of the mix by itself"
    if config.Eval.way > 1 or config.Eval.protocol != "fss":
        yield "Eval.way and Eval.protocol need one data set; remove them, or Data.data_set mix"


def _mistakes_in_protocol(config: Config) -> Iterator[str]:
    options, one_map = config.Eval, ""
    if options.way > 1:
        one_map = f"Eval.way {options.way}"
    if options.protocol != "fss":
        one_map = f"Eval.protocol {options.protocol}"
        if options.way > 1:
            yield f"Eval.way has no effect with {one_map}; remove one of them"
        if options.order == "classes":
            remedy = "set list or permuted"
            yield f"Eval.order classes asks for novel classes in turn, {one_map} does not; {remedy}"
        if config.Data.trained_on:
            yield f"{one_map} needs the base classes of its own data set; remove Data.trained_on"
    elif options.merge_tau != 0.5:
        yield "Eval.merge_tau has no effect with Eval.protocol fss; remove it"
    if one_map and options.batch_size > 1:
        yield f"Eval.batch_size has no effect with {one_map}, whose classes run together; remove it"


def _mistakes_in_training(config: Config) -> Iterator[str]:
    data, method, train = config.Data, config.Method, config.Train
    packaged = "timm/tf_efficientnet_lite0"
    if method.pretrained == "package" and method.backbone != packaged:
        what = f"has no weights of {method.backbone}, only of {packaged}"
        yield f"Method.pretrained package {what}; write download, none or a file"
    if method.train_parts and not train.adversarial:
        yield "Method.train_parts has no effect without Train.adversarial; set it to true"
    if method.train_kshot and data.shot == 1:
        yield "Method.train_kshot has no effect with one shot; set Data.shot or remove it"
    if method.kshot_trans_dim != 2 and data.shot == 1:
        yield "Method.kshot_trans_dim has no effect with one shot; set Data.shot or remove it"
    if train.sub_epoch_val and not train.evaluate:
        yield "Train.sub_epoch_val has no effect without Train.evaluate; remove one of them"
    if train.adversarial_period % 2 == 0:
        # Else each weighted iteration is a discriminator step: the two take turns.
        yield f"Train.adversarial_period must be odd, given {train.adversarial_period}"
    if train.feature_store and method.name == "pfenet" and method.train_backbone_norms:
        what = "keeps features that never change; set Method.train_backbone_norms false"
        yield f"Train.feature_store {what}, or Train.feature_store false"
    if train.feature_store and data.augment:
        yield "Train.feature_store keeps features of unchanged images; set Data.augment false"
    if data.crop[0] < 1 and not data.augment:
        yield "Data.crop has no effect without Data.augment; set it, or remove the key"
    if data.own_view and not data.augment:
        yield "Data.own_view needs Data.augment: else the supports equal the query; set it"
    if data.absent_supports != "any" and not data.absent:
        yield "Data.absent_supports has no effect without Data.absent; set it, or remove the key"
    if train.batch_size % data.same_query:
        whole = f"a multiple of Data.same_query, {data.same_query}"
        yield f"Train.batch_size wants {whole}, given {train.batch_size}"
    if train.accumulate > train.batch_size:
        limit = f"Train.batch_size, {train.batch_size}"
        yield f"Train.accumulate wants at most {limit}, given {train.accumulate}"
    if train.seed_deterministic and config.Speed.cudnn_benchmark:
        yield "Speed.cudnn_benchmark contradicts Train.seed_deterministic; remove one of them"


def _mistakes_in_system(config: Config) -> Iterator[str]:
    for name, field in KEYS.items():
        section, _, key = name.partition(".")
        systems = facts_of(name)["systems"]
        changed = getattr(getattr(config, section), key) != field.default
        if systems and config.Method.name not in systems and changed:
            yield f"{name} has no effect with Method.name {config.Method.name}; remove it"


def key_hint(name: str) -> str:
    """Say which key a wrong `Section.key` may stand for.

    In this order: the same key in another section, a similar name, all keys of the section.
    """
    section, _, last = name.rpartition(".")
    if not section:
        last = _closest(last, {known.partition(".")[2] for known in KEYS}) or last
    if namesakes := [known for known in KEYS if known.lower().endswith(f".{last.lower()}")]:
        return f"did you mean {_closest(name, namesakes, 0.8) or ' or '.join(namesakes)}?"
    if close := _closest(name, KEYS, 0.8):
        return f"did you mean {close}?"
    if section in SECTIONS:
        return f"there is {', '.join(known for known in KEYS if known.startswith(f'{section}.'))}"
    return nearest(section, SECTIONS)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean X?", or all known words if none is similar."""
    close = _closest(word, known)
    return f"did you mean {close}?" if close else f"there is {', '.join(known)}"


def _closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word that is most similar, in upper or lower case."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    return lower[close[0]] if close else None


def shorten(value: Any) -> str:
    """Return a value as messages show it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
