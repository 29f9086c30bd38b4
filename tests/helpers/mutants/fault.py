"""What a hand-made fault is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Replace `old` by `new` in `file`; then `test` (in tests/) must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
