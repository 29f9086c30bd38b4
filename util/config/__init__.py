"""Configuration: every key with its default and limits, YAML files, overrides, command lines."""

from util.config.load import (
    config_from,
    flatten,
    load_config,
    save_config,
    to_dict,
    with_class_names,
)
from util.config.schema import KEYS, Config, DataSection, keys_with

__all__ = [
    "KEYS",
    "Config",
    "DataSection",
    "config_from",
    "flatten",
    "keys_with",
    "load_config",
    "save_config",
    "to_dict",
    "with_class_names",
]
