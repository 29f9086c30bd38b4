"""Entry points called in this process as the command line would."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from helpers.runs import CONFIG
from util.runtime.cli import main


def call(entry: Callable[[], Any], *words: str, config: bool = True) -> int:
    """Runs an entry point; its exit status.

    Args:
        entry: such as `train.train`.
        *words: of the command line.
        config: put `--config` of the demo and `--gpus 0` before them.
    """
    first = ["--config", str(CONFIG), "--gpus", "0"] if config else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [entry.__name__, *first, *words])
        try:
            main(entry)
        except SystemExit as stop:
            return int(stop.code)
    return 0
