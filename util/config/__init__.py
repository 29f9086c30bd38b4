"""Configuration: every key, its default and its limits; YAML files, overrides, command lines."""

from util.config.load import config_from, load_config, save_config, to_dict
from util.config.schema import Config, DataSection

__all__ = ["Config", "DataSection", "config_from", "load_config", "save_config", "to_dict"]
