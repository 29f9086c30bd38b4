"""Properties of merged configs, for any values and any unknown key."""

import string
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from util.config import Config, load_config, to_dict
from util.runtime.errors import UserError

VALUES = {
    "Data.shot": st.integers(1, 10),
    "Data.size": st.integers(5, 80).map(lambda n: 8 * n + 1),
    "Data.scale": st.tuples(st.floats(0.1, 1), st.floats(1, 3)).map(list),
    "Data.cache": st.text(string.ascii_letters + "/_", max_size=8),
    "Train.lr": st.floats(1e-9, 1e3),
    "Train.epochs": st.integers(1, 10**6),
    "Train.adversarial": st.booleans(),
    "Train.precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "Eval.seeds": st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True),
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def nested(values: dict) -> dict:
    made: dict = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        made.setdefault(section, {})[key] = value
    return made


def word(name: str, value: object) -> str:
    return f"{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"


@given(SOME, SOME, SOME)
def test_override_wins_over_the_file_and_the_file_over_its_base(
    base: dict, top: dict, words: dict
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "base.yaml").write_text(yaml.safe_dump(nested(base)), encoding="utf-8")
        path = Path(folder, "top.yaml")
        path.write_text(yaml.safe_dump({"_base_": "base.yaml", **nested(top)}), encoding="utf-8")
        got = to_dict(load_config(path, [word(*item) for item in words.items()]))
    wanted = to_dict(Config())
    for name, value in (base | top | words).items():
        section, _, key = name.partition(".")
        wanted[section][key] = value
    assert got == wanted
    for section, keys in to_dict(Config()).items():
        for key, default in keys.items():
            assert type(got[section][key]) is type(default)


@given(
    st.sampled_from(["Data", "Train", "Eval", "Nonesuch"]),
    st.text(string.ascii_lowercase + "_", min_size=1, max_size=12),
)
def test_unknown_key_is_refused_on_the_command_line_and_in_a_file(section: str, key: str) -> None:
    assume(key not in to_dict(Config()).get(section, {}))
    with tempfile.TemporaryDirectory() as folder:
        empty, path = Path(folder, "empty.yaml"), Path(folder, "top.yaml")
        empty.write_text("{}", encoding="utf-8")
        path.write_text(yaml.safe_dump({section: {key: 1}}), encoding="utf-8")
        for call in ((empty, [f"{section}.{key}=1"]), (path, [])):
            with pytest.raises(UserError, match="unknown (key|section)") as caught:
                load_config(*call)
            assert "\n" not in str(caught.value)
