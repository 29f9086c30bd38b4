"""Several data sets at once: classes united by name, episodes within one set, lists, tables."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn import write_pair, write_rectangles
from helpers.pictures import data_config, refused

from util.config import Config, config_from, to_dict, with_class_names
from util.data.base_images import open_base_images
from util.data.check import check
from util.data.controls import PLANS
from util.data.dataset import open_episodes
from util.data.episodes import DATA_SET, Draw, EpisodeSampler, generator
from util.data.image_io import read_label
from util.data.leaks import STAGES, Trained, find_leaks, format_leaks
from util.data.lists import fold_list, list_of, write_lists
from util.data.mixed import open_source
from util.data.source import AnySource
from util.data.tables import load_table
from util.data.transform import EvalTransform
from util.folds import CLASSES, fold_of, mixed_sets

KINDS = {"one": ("Cat", "dog", "tv"), "two": ("shirt", "cat", "hot-dog", "dog")}


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A mix of two sets of one's own, whose classes are partly the same, and COCO."""
    root = tmp_path_factory.mktemp("mix")
    for seed, (name, classes) in enumerate(KINDS.items()):
        write_rectangles(root / name, "custom", len(classes), seed)
        (root / name / "classes.txt").write_text("\n".join(classes))
    write_rectangles(root / "coco", "coco", 80, 5)
    folders = [f"custom:{root}/one", f"custom:{root}/two", f"coco:{root}/coco"]
    return with_class_names(data_config(
        data_set="mix", mix=folders, list_dir=f"{root}/lists", min_pixels=100, missing="skip",
        augment=False,
    ))  # fmt: skip


def own_label(source: AnySource, image: str) -> list[list[str]]:
    """The class name of each pixel of an image, read without the mix; '' and '255' as well."""
    name, _, own = image.partition("/")
    part = source.parts[name]
    names = ["", *(KINDS.get(name) or CLASSES["coco"])]
    label = read_label(part.label_path(own))
    return [["255" if v == 255 else names[v] for v in row] for row in label]


def same_class(one: str, other: str) -> bool:
    def bare(name: str) -> str:
        return name.lower().replace("-", "").replace(" ", "")

    return bare(one) == bare(other)


def test_classes_are_united_by_name_in_the_order_of_the_sets(mix: Config) -> None:
    names = mix.Data.classes
    assert names[:5] == ("Cat", "dog", "tv", "shirt", "hot-dog") and names[5] == "person"
    # COCO has cat, dog, tv and hot dog, too.
    assert len(names) == 5 + 80 - 4 and "cat" not in names and "hot dog" not in names
    fold = fold_of(mix.Data)
    assert fold.novel == () and fold.base == tuple(range(1, 82)) == fold.classes("val")
    assert config_from(to_dict(mix), "a test") == mix
    assert mix.num_base_classes == 81


def test_masks_have_the_classes_of_the_mix(mix: Config) -> None:
    for subset in ("train", "val"):
        source = open_source(mix.Data, subset)
        for image in source.image_ids()[::11]:
            wanted = own_label(source, image)
            for label in (source.load(image)[1], source.read_label(image), source.decode(image)[1]):
                assert label.shape == (len(wanted), len(wanted[0]))
                for row, names in zip(label[::7], wanted[::7], strict=True):
                    for value, name in zip(row, names, strict=True):
                        found = {0: "", 255: "255"}.get(int(value)) if value in (0, 255) else None
                        found = mix.Data.classes[value - 1] if found is None else found
                        assert same_class(found, name)


def test_table_counts_the_pixels_that_the_masks_of_the_mix_hold(mix: Config) -> None:
    source = open_source(mix.Data, "train")
    table = load_table(source, mix.Data.list_dir)
    assert list(table) == source.image_ids() and len(table) == 180
    for image, pixels in table.items():
        label = source.read_label(image)
        values = {int(v): int((label == v).sum()) for v in np.unique(label) if v not in (0, 255)}
        assert pixels == values
    stored = {path.name for path in Path(mix.Data.list_dir).iterdir()}
    assert {"one", "two", "coco"} <= stored


def test_every_episode_lies_within_one_data_set(mix: Config) -> None:
    for subset in ("train", "val"):
        episodes, _ = open_episodes(mix, subset, 3)
        seen = Counter()
        for index in range(300):
            plan = episodes.sampler.plan(index)
            [name] = {image.partition("/")[0] for image in (plan.query, *plan.supports)}
            seen[name] += 1
            for kind, make in PLANS.items():
                beside = make(episodes.sampler, index)
                if beside:
                    images = (beside.query, *beside.supports, *(i for i, _ in beside.masks))
                    assert {i.partition("/")[0] for i in images} == {name}, kind
            assert plan.index == index
        assert min(seen.values()) > 70 and len(seen) == 3  # 100 each on average
        example = episodes[4]
        source = episodes.source
        label = source.load(example.plan.query)[1]
        assert (example.query_mask == 1).any() == (label == example.plan.class_id).any()
        assert (example.support_mask == 1).any()


def test_weights_say_how_often_a_set_is_drawn_and_0_leaves_it_out(mix: Config) -> None:
    weighted = data_config(**to_dict(mix)["Data"] | {"mix_weights": [3, 0, 1.0]})
    for subset in ("train", "val"):
        episodes, _ = open_episodes(weighted, subset, 3)
        plans = [episodes.sampler.plan(i) for i in range(800)]
        seen = Counter(plan.query.partition("/")[0] for plan in plans)
        assert seen["two"] == 0 and seen["one"] / 800 == pytest.approx(0.75, abs=0.05)


def test_episodes_in_a_row_have_one_query_and_absent_classes_are_of_its_set(mix: Config) -> None:
    asking = data_config(**to_dict(mix)["Data"] | {"same_query": 2, "absent": 0.5})
    episodes, _ = open_episodes(asking, "train", 3)
    sampler, absent = episodes.sampler, 0
    for turn in range(150):
        plans = [sampler.plan(2 * turn + i) for i in range(2)]
        assert plans[0].query == plans[1].query
        for plan in plans:
            absent += plan.class_id not in sampler.fold.classes_of[plan.query]
            [name] = {image.partition("/")[0] for image in (plan.query, *plan.supports)}
    assert absent > 100


def test_episode_depends_on_seed_and_index_alone(mix: Config) -> None:
    (one, _), (other, _) = (open_episodes(mix, "train", 3) for _ in range(2))
    late = [other.sampler.plan(i) for i in reversed(range(50))]
    assert [one.sampler.plan(i) for i in range(50)] == late[::-1]
    again = one.sampler.with_seed(4).with_seed(3)
    assert [again.plan(i) for i in range(50)] == late[::-1]
    assert [one.sampler.with_seed(4).plan(i) for i in range(50)] != late[::-1]


@pytest.mark.parametrize("order", ["permuted", "list", "classes"])
def test_episode_is_the_one_that_the_drawn_set_has_alone_at_this_index(
    mix: Config, order: str
) -> None:
    fold = open_episodes(mix, "val", 3)[0].sampler.fold
    weights, drawn = (1.0, 0.0, 3.0), {}
    for seed in (3, 4):
        sampler = EpisodeSampler(fold, 1, seed, Draw(order, weights=weights))
        alone = [EpisodeSampler(part, 1, seed, Draw(order)) for part in fold.parts]
        for index in range(60):
            chosen = generator(seed, DATA_SET, index).choice([0, 2], p=[0.25, 0.75])
            assert sampler.plan(index) == alone[chosen].plan(index)
        drawn[seed] = [sampler.plan(i).query for i in range(60)]
    assert drawn[3] != drawn[4]  # even in the order of the list: the sets are drawn


def test_mix_of_one_set_draws_what_the_set_draws_alone(mix: Config) -> None:
    folder = mix.Data.mix[0].partition(":")[2]
    keys = {"list_dir": f"{folder}/own", "min_pixels": 100, "novel": ["dog"], "augment": False}
    alone = data_config(data_set="custom", data_root=folder, **keys)
    one = data_config(data_set="mix", mix=mix.Data.mix[:1], mix_weights=[2], **keys)
    for subset in ("train", "val"):
        (of_mix, _), (of_set, _) = (open_episodes(cfg, subset, 3) for cfg in (one, alone))
        for index in range(40):
            found, wanted = of_mix.sampler.plan(index), of_set.sampler.plan(index)
            assert found.query == f"one/{wanted.query}" and found.class_id == wanted.class_id
            assert found.supports == tuple(f"one/{i}" for i in wanted.supports)
    empty = data_config(**to_dict(one)["Data"] | {"min_pixels": 9999, "missing": "skip"})
    refused(["no mask has 9999 pixels"], open_episodes, empty, "train", 3)


def test_list_of_a_set_is_that_of_the_set_alone(mix: Config) -> None:
    source = open_source(mix.Data, "train")
    episodes, _ = open_episodes(mix, "train", 3)
    names = list(source.parts)
    for part, name in zip(episodes.sampler.fold.parts, names, strict=True):
        alone = {i: p for i, p in load_table(source, mix.Data.list_dir).items()
                 if i.startswith(f"{name}/")}  # fmt: skip
        wanted = fold_list(alone, fold_of(mix.Data), "train", 100)
        kept = {c: ids for c, ids in wanted.by_class.items() if len(ids) > 1}
        assert part.by_class == kept
        assert set(part.images) == {i for i in wanted.images if set(alone[i]) & set(kept)}
    fold = episodes.sampler.fold
    assert fold.images == [i for part in fold.parts for i in part.images]


def test_class_with_too_few_images_in_its_set_is_refused_with_the_default(mix: Config) -> None:
    strict = data_config(**to_dict(mix)["Data"] | {"missing": "error"})
    refused(["images of >= 100 pixels, 1-shot needs 2"], open_episodes, strict, "train", 1)


def test_base_learner_is_trained_on_the_images_of_all_sets(mix: Config) -> None:
    samples, _ = open_base_images(mix, "train", EvalTransform((65, 65)), None)
    source = open_source(mix.Data, "train")
    assert list(samples.images) == source.image_ids()
    for index in (0, 70, 150):  # one image of each set
        _, label = samples[index]
        there = set(np.unique(source.load(samples.images[index])[1])) - {0, 255}
        found = set(label.unique().tolist()) - {0, 255}
        assert found <= {int(v) for v in there} and found  # every class is a base class


def test_novel_classes_of_a_mix_are_tested_and_not_trained_on(mix: Config) -> None:
    held_out = data_config(**to_dict(mix)["Data"] | {"novel": ["dog", "shirt"]})
    train, _ = open_episodes(held_out, "train", 1)
    tests, report = open_episodes(held_out, "val", 1)
    table = load_table(open_source(held_out.Data, "train"), held_out.Data.list_dir)
    assert all(not {2, 4} & table[i].keys() for i in train.sampler.fold.images)
    assert set(tests.sampler.fold.by_class) <= {2, 4}
    assert {plan.class_id for plan in map(tests.sampler.plan, range(99))} == {2, 4}
    assert any(line.startswith("coco: left out: no mask has 100 pixels") for line in report)
    alone = data_config(**to_dict(held_out)["Data"] | {"mix_weights": [0, 0, 1]})
    refused(["Data.mix_weights: no data set"], open_episodes, alone, "val", 1)


def test_check_and_lists_report_each_set(
    mix: Config, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    report = check(mix.Data, "train")
    assert report.mistakes == [] and list(report.sets) == ["one", "two", "coco"]
    for name, part in report.sets.items():
        assert len(part.table) == 60 and all(i.startswith(name) for i in part.fold.images)
    assert set(report.sets["one"].fold.by_class) == {1, 2, 3}
    strict = data_config(**to_dict(mix)["Data"] | {"missing": "error"})
    lines = check(strict.Data, "train").mistakes
    assert lines and all(line.startswith("coco: class ") for line in lines)
    assert write_lists(mix.Data) == []
    assert (Path(mix.Data.list_dir) / "train_0.json").is_file()


def test_what_is_not_used_is_said_with_the_name_of_its_set(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write_rectangles(tmp_path / name, "custom", 3, seed)
    write_rectangles(tmp_path / "coco", "coco", 80, 5)
    (tmp_path / "two/images/._train003.jpg").write_bytes(b"x")
    (tmp_path / "one/masks/train004.png").rename(tmp_path / "one/masks/train004.gif")
    ids = (tmp_path / "one/train.txt").read_text().split()
    (tmp_path / "one/train.txt").write_text("\n".join(i for i in ids if i != "train004"))
    (tmp_path / "coco/train2014/readme.txt").write_text("x")
    mix = [*(f"custom:{tmp_path}/{n}" for n in ("one", "two")), f"coco:{tmp_path}/coco"]
    lists = f"{tmp_path}/lists"
    cfg = data_config(data_set="mix", mix=mix, list_dir=lists, missing="skip", augment=False)
    wanted = [
        f"one: {tmp_path}/one/images: not used: 1 images without a mask, such as train004.jpg",
        f"two: {tmp_path}/two/images: not used: 1 hidden files, such as ._train003.jpg",
    ]
    of_coco = f"coco: {tmp_path}/coco/train2014: not used: 1 files or folders"
    report = check(cfg.Data, "train")
    assert set(wanted) <= set(report.notes) and "one: " not in str(report.sets["one"].notes)
    assert any(line.startswith(of_coco) for line in report.notes)
    few = "no base class has 2048 pixels in them"
    assert any(line.startswith("two: train: left out") and few in line for line in report.notes)
    of_val = check(cfg.Data, "val").notes  # no class is novel, so the base classes are asked for
    assert any(line.startswith("two: val: left out") and few in line for line in of_val)
    unused = open_source(cfg.Data, "train").unused()
    assert set(wanted) <= set(unused) and any(line.startswith(of_coco) for line in unused)
    assert len(unused) == 4  # that of the mask of another kind, too
    small = data_config(**to_dict(cfg)["Data"] | {"min_pixels": 100})
    for _, told in (
        open_episodes(small, "train", 1),
        open_base_images(small, "train", EvalTransform((65, 65)), None),
    ):  # runs say it of sets of one's own, as without a mix
        assert set(wanted) <= set(told) and not any(line.startswith(of_coco) for line in told)


def test_large_photograph_of_a_set_is_reduced_with_its_mask(tmp_path: Path) -> None:
    write_rectangles(tmp_path / "one", "custom", 3)
    label = np.zeros((2400, 3200), np.uint8)
    label[400:1200, 800:2400] = 2
    write_pair(tmp_path / "one/images", tmp_path / "one/masks", "train000", label)
    (tmp_path / "one/classes.txt").write_text("tv\ncat\ncar")
    write_rectangles(tmp_path / "coco", "coco", 80)
    cfg = data_config(data_set="mix", mix=[f"coco:{tmp_path}/coco", f"custom:{tmp_path}/one"])
    source = open_source(cfg.Data, "train")
    wanted = np.zeros((1200, 1600), np.uint8)
    wanted[200:600, 400:1200] = CLASSES["coco"].index("cat") + 1
    for image, found in (source.load("one/train000"), source.decode("one/train000")):
        assert image.shape == (1200, 1600, 3) and np.array_equal(found, wanted)
    assert source.read_pair("one/train000")[1].shape == (2400, 3200)


def test_folder_of_a_set_may_begin_with_the_users_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    found = [(each.name, each.root) for each in mixed_sets(["coco:~/coco", "custom:~/mine"])]
    assert found == [("coco", tmp_path / "coco"), ("mine", tmp_path / "mine")]
    monkeypatch.chdir(tmp_path / "mine")
    assert mixed_sets(["custom:."])[0].name == "mine"


def test_leaks_count_the_classes_of_all_sets(mix: Config) -> None:
    how = Trained(mix)
    table = load_table(open_source(mix.Data, "val"), mix.Data.list_dir)
    tested = list_of(table, mix.Data, "val")[0]
    leaks = find_leaks(tested, mix.Data, how, how)
    train = load_table(open_source(mix.Data, "train"), mix.Data.list_dir)
    counted = leaks["stage one"]
    assert counted["images"] == 180 and counted["objects"] == "trained"
    for number, name in ((1, "Cat"), (4, "shirt")):
        assert counted["classes"][name]["images"] == sum(number in p for p in train.values())
    text = format_leaks(leaks)
    for stage in STAGES:  # in validation, too, nothing is novel
        [line] = [line for line in text.splitlines() if line.startswith(f"{stage}: ")]
        assert line.endswith(" of the test; no class is novel: all are trained on")
    assert "novel objects are" not in text


def test_images_that_a_test_of_one_set_has_in_common_with_a_mix_are_counted(
    mix: Config, tmp_path: Path
) -> None:
    how = Trained(data_config(**to_dict(mix)["Data"] | {"novel": ["shirt"]}))
    known = fold_of(how.config.Data).base_names
    folder = Path(mix.Data.mix[1].partition(":")[2])
    shutil.copytree(folder, tmp_path / "two")
    for root, is_same in ((folder, True), (tmp_path / "two", False)):
        other = data_config(
            data_set="custom", data_root=str(root), list_dir=f"{tmp_path}/lists{is_same}",
            min_pixels=100, trained_on="other", known=known, novel=["shirt"],
        )  # fmt: skip
        tested = list_of(load_table(open_source(other.Data, "val"), other.Data.list_dir),
                         other.Data, "val")[0]  # fmt: skip
        leaks = find_leaks(tested, other.Data, how, how, build=True)
        counts = [leaks[stage]["test_images"] for stage in STAGES]
        assert tested.images and leaks["stage one"]["classes"]["shirt"]["images"]
        # Training has other images than the test; validation of stage one has all of them.
        wanted = len(set(tested.images).union(*tested.by_class.values()))
        if is_same:
            assert counts[:3] == [0, 0, wanted] and 0 < counts[3] <= wanted
        else:
            assert counts == [None] * 4


def test_cache_keeps_images_of_equal_names_apart(mix: Config, tmp_path: Path) -> None:
    cached = data_config(**to_dict(mix)["Data"] | {"cache": f"{tmp_path}/cache"})
    plain, source = (open_source(c.Data, "train") for c in (mix, cached))
    for _ in range(2):  # written, then read
        for image in ("one/train003", "two/train003", "coco/train003"):
            pairs = zip(plain.load(image), source.load(image), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
