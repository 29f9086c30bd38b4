"""Properties of folds, lists and episodes, for any classes, masks and seeds."""

import string

from hypothesis import given
from hypothesis import strategies as st

from model.constants import IGNORE
from util.data.episodes import Draw, EpisodeSampler
from util.data.lists import FoldList, fold_list
from util.data.tables import Table
from util.folds import CLASSES, Fold, published_fold


@given(st.sampled_from(list(CLASSES)), st.integers(0, 3), st.booleans())
def test_every_class_is_either_base_or_novel_and_base_classes_are_numbered(
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
    """Draw the table of some masks, and a fold of 2 to 6 classes."""
    count = draw(st.integers(2, 6))
    novel = draw(st.sets(st.integers(1, count), min_size=1, max_size=count - 1))
    mask = st.dictionaries(st.integers(1, count), st.integers(1, 4096), max_size=count)
    masks = draw(st.lists(mask, max_size=12))
    names = tuple(string.ascii_lowercase[:count])
    return {f"i{n}": has for n, has in enumerate(masks)}, Fold(names, tuple(sorted(novel)))


@given(tables())
def test_training_list_has_no_novel_pixel_and_every_query_has_a_wanted_class(made: tuple) -> None:
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
def lists_with_shots(draw: st.DrawFn) -> tuple[FoldList, int]:
    """Draw a fold list with enough images for K shots, and K."""
    shot = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(shot + 1, shot + 5), min_size=1, max_size=4))
    by_class: dict[int, list[str]] = {
        c: [f"c{c}_{i}" for i in range(n)] for c, n in enumerate(sizes, 1)
    }
    images = [name for names in by_class.values() for name in names]
    classes_of = {name: (c,) for c, names in by_class.items() for name in names}
    for name in draw(st.sets(st.sampled_from(images))):  # a second class, too small for a support
        classes_of[name] = tuple(sorted({*classes_of[name], draw(st.integers(1, len(sizes)))}))
    return FoldList(images, by_class, classes_of, CLASSES["pascal"]), shot


@given(
    lists_with_shots(),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 10**7), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_episode_depends_on_seed_and_index_alone_and_has_distinct_supports_of_its_class(
    made: tuple, seed: int, indices: list[int], balance: float
) -> None:
    fold, shot = made
    one, other = (EpisodeSampler(fold, shot, seed, Draw(balance=balance)) for _ in range(2))
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
