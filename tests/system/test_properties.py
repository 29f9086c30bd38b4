"""What holds for any input: metrics, folds, episodes, resizing, merging of configs."""

import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.constants import IGNORE
from model.resize import bilinear, bilinear_ac, nearest
from util.config import Config, load_config, to_dict
from util.data.episodes import EpisodeSampler
from util.data.lists import FoldList, fold_list
from util.data.tables import Table
from util.evaluate.metrics import BaseTotals, BinaryTotals, ThresholdTotals
from util.folds import CLASSES, Fold, published_fold

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
CPU = torch.device("cpu")
N = 5  # classes


# --- metrics ------------------------------------------------------------------------------------


@st.composite
def label_pairs(draw: st.DrawFn, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction of 0..classes and a target of 0..classes and 255, of one shape."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    target = st.one_of(st.integers(0, classes), st.just(IGNORE))
    return (
        draw(arrays.arrays(np.int64, shape, elements=st.integers(0, classes))),
        draw(arrays.arrays(np.int64, shape, elements=target)),
    )


def confusion(prediction: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by (truth, prediction), those of 255 left out."""
    kept = target != IGNORE
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (target[kept], prediction[kept]), 1)
    return matrix


def areas(matrix: np.ndarray) -> np.ndarray:
    """[classes, 2 (I, U)] of a confusion matrix."""
    hit = matrix.diagonal()
    return np.stack([hit, matrix.sum(0) + matrix.sum(1) - hit], axis=1)


@given(st.lists(label_pairs(N), min_size=1, max_size=4))
def test_base_totals_are_those_of_a_confusion_matrix_and_add_up(pairs: list) -> None:
    totals, matrix = BaseTotals(N, CPU), np.zeros((N + 1, N + 1), np.int64)
    shards = [BaseTotals(N, CPU) for _ in range(2)]
    for index, pair in enumerate(pairs):
        tensors = [torch.from_numpy(x) for x in pair]
        totals.add(*tensors)
        shards[index % 2].add(*tensors)
        matrix += confusion(*pair, N)
    assert totals.totals.tolist() == areas(matrix).tolist()
    assert torch.equal(totals.totals, shards[0].totals + shards[1].totals)
    seen = [(i, u) for i, u in areas(matrix)[1:] if u]
    expected = np.mean([i / u for i, u in seen]) if seen else 0.0
    assert totals.miou() == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(label_pairs(1), st.integers(0, N - 1)), min_size=1, max_size=5))
def test_binary_totals_are_those_of_a_confusion_matrix_and_add_up(episodes: list) -> None:
    totals, counts = BinaryTotals(N, CPU), np.zeros((N, 2, 2), np.int64)
    shards = [BinaryTotals(N, CPU) for _ in range(2)]
    for number, ((prediction, target), index) in enumerate(episodes):
        tensors = torch.from_numpy(prediction), torch.from_numpy(target)
        totals.add(*tensors, index)
        shards[number % 2].add(*tensors, index)
        counts[index] += areas(confusion(prediction, target, 1))
    assert totals.totals.tolist() == counts.tolist()
    assert torch.equal(totals.totals, shards[0].totals + shards[1].totals)
    iou = counts[:, 1, 0] / np.maximum(counts[:, 1, 1], 1)
    np.testing.assert_allclose(totals.class_iou().numpy(), iou, rtol=1e-12)
    both = counts.sum(0)
    fb_iou = (both[:, 0] / np.maximum(both[:, 1], 1)).mean()
    assert totals.fb_iou() == pytest.approx(fb_iou, rel=1e-12)


@given(label_pairs(1), st.integers(0, 2**32 - 1))
def test_what_is_predicted_on_ignored_pixels_counts_for_nothing(pair: tuple, seed: int) -> None:
    prediction, target = pair
    other = prediction.copy()
    ignored = target == IGNORE
    other[ignored] = np.random.default_rng(seed).integers(0, 2, ignored.sum())
    values = [torch.from_numpy(x.astype(float)) for x in (prediction, other)]
    truth = torch.from_numpy(target)
    for kind in (BinaryTotals, ThresholdTotals):
        made = [kind(1, CPU) for _ in values]
        for totals, value in zip(made, values, strict=True):
            totals.add(value, truth, 0)
        assert torch.equal(made[0].totals, made[1].totals)


# --- folds and episodes -------------------------------------------------------------------------


@given(st.sampled_from(list(CLASSES)), st.integers(0, 3), st.booleans())
def test_base_and_novel_classes_part_the_classes(
    data_set: str, split: int, every_fourth: bool
) -> None:
    fold = published_fold(data_set, split, every_fourth)
    every = range(1, len(CLASSES[data_set]) + 1)
    assert sorted(fold.base + fold.novel) == list(every)
    assert len(fold.novel) * 4 == len(every)
    table = fold.base_table()
    assert [int(table[c]) for c in fold.base] == list(range(1, len(fold.base) + 1))
    assert not table[[0, *fold.novel]].any() and table[IGNORE] == IGNORE


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, Fold]:
    """What some masks hold, and a fold of 2 to 6 classes."""
    count = draw(st.integers(2, 6))
    novel = draw(st.sets(st.integers(1, count), min_size=1, max_size=count - 1))
    mask = st.dictionaries(st.integers(1, count), st.integers(1, 4096), max_size=count)
    masks = draw(st.lists(mask, max_size=12))
    names = tuple(string.ascii_lowercase[:count])
    return {f"i{n}": has for n, has in enumerate(masks)}, Fold(names, tuple(sorted(novel)))


@given(tables())
def test_a_training_list_shows_no_novel_pixel_and_every_query_has_its_class(made: tuple) -> None:
    table, fold = made
    for subset in ("train", "val"):
        listed, wanted = fold_list(table, fold, subset), set(fold.classes(subset))
        for name in listed.images:
            assert set(listed.classes_of[name]) == wanted & table[name].keys()
            assert any(table[name].get(c, 0) >= 2048 for c in wanted)
            if subset == "train":
                assert not table[name].keys() & set(fold.novel)
        for c, names in listed.by_class.items():
            assert c in wanted and set(names) <= set(listed.images)
            assert all(table[name][c] >= 2048 for name in names)


@st.composite
def servable(draw: st.DrawFn) -> tuple[FoldList, int]:
    """A fold list that can serve K shots, and K."""
    shot = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(shot + 1, shot + 5), min_size=1, max_size=4))
    by_class: dict[int, list[str]] = {
        c: [f"c{c}_{i}" for i in range(n)] for c, n in enumerate(sizes, 1)
    }
    images = [name for names in by_class.values() for name in names]
    classes_of = {name: (c,) for c, names in by_class.items() for name in names}
    for name in draw(st.sets(st.sampled_from(images))):  # small in them: asked for, no support
        classes_of[name] = tuple(sorted({*classes_of[name], draw(st.integers(1, len(sizes)))}))
    return FoldList(images, by_class, classes_of, CLASSES["pascal"]), shot


@given(
    servable(),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 10**7), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_an_episode_is_a_function_of_seed_and_index_and_its_supports_serve(
    made: tuple, seed: int, indices: list[int], balance: float
) -> None:
    fold, shot = made
    one, other = (EpisodeSampler(fold, shot, seed, balance) for _ in range(2))
    plans = [one.plan(i) for i in indices]
    assert plans == [other.plan(i) for i in reversed(indices)][::-1]
    for plan in plans:
        assert plan.class_id in fold.classes_of[plan.query]
        assert len({plan.query, *plan.supports}) == shot + 1
        assert set(plan.supports) <= set(fold.by_class[plan.class_id])
        draws = [s.rng(plan.index).random() for s in (one, other)]
        assert draws[0] == draws[1]
    if balance:
        return
    first = indices[0] // len(fold.images) * len(fold.images)
    queries = [one.plan(first + i).query for i in range(len(fold.images))]
    assert sorted(queries) == sorted(fold.images)


# --- resizing -----------------------------------------------------------------------------------

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def by_hand(x: np.ndarray, size: tuple[int, int], *, aligned: bool) -> np.ndarray:
    """Bilinear interpolation of [h,w], written out."""

    def places(new: int, old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(new)
        if aligned:
            at = at * (old - 1) / max(new - 1, 1)
        else:
            at = np.clip((at + 0.5) * old / new - 0.5, 0, None)
        low = np.clip(np.floor(at).astype(int), 0, old - 1)
        return low, np.minimum(low + 1, old - 1), at - low

    low, high, part = places(size[0], x.shape[0])
    rows = x[low] * (1 - part)[:, None] + x[high] * part[:, None]
    low, high, part = places(size[1], x.shape[1])
    return rows[:, low] * (1 - part) + rows[:, high] * part


@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_the_three_resizings_are_what_their_names_say(
    old: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, *old)))
    for mine, aligned in ((bilinear_ac, True), (bilinear, False)):
        got = mine(x, new)
        torch.testing.assert_close(
            got, F.interpolate(x, new, mode="bilinear", align_corners=aligned)
        )
        wanted = by_hand(x[1, 2].numpy(), new, aligned=aligned)
        np.testing.assert_allclose(got[1, 2].numpy(), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(nearest(x, new), F.interpolate(x, new, mode="nearest"))
    if min(*old, *new) > 1:  # aligned corners are kept as they are
        corners = torch.tensor([0, -1])
        got, kept = (y[..., corners, :][..., corners] for y in (bilinear_ac(x, new), x))
        torch.testing.assert_close(got, kept)


# --- configs ------------------------------------------------------------------------------------

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
def test_an_override_wins_over_the_file_and_the_file_over_its_base(
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
def test_an_unknown_key_is_refused_on_the_command_line_and_in_a_file(
    section: str, key: str
) -> None:
    assume(key not in to_dict(Config()).get(section, {}))
    with tempfile.TemporaryDirectory() as folder:
        empty, path = Path(folder, "empty.yaml"), Path(folder, "top.yaml")
        empty.write_text("{}", encoding="utf-8")
        path.write_text(yaml.safe_dump({section: {key: 1}}), encoding="utf-8")
        for call in ((empty, [f"{section}.{key}=1"]), (path, [])):
            with pytest.raises(ValueError, match="unknown (key|section)") as caught:
                load_config(*call)
            assert "\n" not in str(caught.value)
