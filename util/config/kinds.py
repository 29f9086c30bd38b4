"""How a key of the config is defined, and the kinds of values that keys have."""

import os
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, Field

T = TypeVar("T")


def key(
    default: T, description: str, neutral: bool = False, names_input: bool = False,
    systems: tuple[str, ...] = (), **limits: Any,
) -> T:  # fmt: skip
    """Define a key of a section; `limits`: of `pydantic.Field`, such as `ge` and `pattern`.

    `neutral`: no result depends on the value: it says where output goes, how it is shown, or how
    fast it comes. `names_input`: the value is a path. Results depend on the content, which they
    record by other means, and not on the path. `systems`: values of Method.name for which the key
    has an effect; (): all.
    """
    facts: Any = {"neutral": neutral, "names_input": names_input, "systems": list(systems)}
    return Field(default, description=description, json_schema_extra=facts, **limits)


# Values are not converted to another type, except where YAML has no better way to write them.
_EMPTY_TEXT = BeforeValidator(lambda value: "" if value is None else value)
_LIST = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
_EXPONENT = BeforeValidator(lambda value: float(value) if isinstance(value, str) else value)  # 2e-4
Text = Annotated[str, _EMPTY_TEXT]
NonEmpty = Annotated[str, Field(pattern="^.+$")]
_HOME = AfterValidator(os.path.expanduser)  # ~ is the user's own folder
File = Annotated[Text, _HOME]
NonEmptyFile = Annotated[NonEmpty, _HOME]
Texts = Annotated[tuple[Text, ...], _LIST]
Number = Annotated[float, _EXPONENT]
Positive = Annotated[float, Gt(0), _EXPONENT]
Fraction = Annotated[float, Ge(0), Le(1), _EXPONENT]
Weights = Annotated[tuple[Annotated[float, Ge(0), _EXPONENT], ...], _LIST]
Scales = Annotated[tuple[Positive, ...], MinLen(1), _LIST]
Range = Annotated[tuple[Positive, Positive], _LIST]
Share = Annotated[float, Gt(0), Le(1), _EXPONENT]
Shares = Annotated[tuple[Share, Share], _LIST]
Side = Annotated[int, Ge(33), Le(4097)]
Size = Side | Annotated[tuple[Side, Side], _LIST]
Seeds = Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1), _LIST]
_WORD = BeforeValidator(
    lambda value: () if value in (None, "none") else (value,) if isinstance(value, str) else value
)
Control = Literal["other_class", "blank_support", "shuffled_mask", "random_support"]
Controls = Annotated[tuple[Control, ...], _LIST, _WORD]
Precision = Literal["fp32", "bf16", "fp16"]
TrainedOn = Annotated[Literal["", "coco", "other"], _EMPTY_TEXT]
