"""The Predictor: equal to test.py, one encoder pass per image, one-line errors."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.pictures import OBJECT, PICTURE

import test as test_entry
from model import Prediction
from model.constants import TEMPERATURE
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config, to_dict
from util.data.dataset import EpisodeDataset, binary_mask
from util.data.episodes import EpisodePlan, EpisodeSampler
from util.data.image_io import read_image, read_label
from util.data.weak import annotate
from util.evaluate.metrics import BinaryTotals, argmax_channels
from util.features import FeatureStore
from util.predict import Box, Example, Predictor
from util.runtime.cli import main
from util.runtime.errors import UserError

EPISODES, SEED = 4, 5


def plans(run: SimpleNamespace, shot: int = 1) -> list[EpisodePlan]:
    sampler = EpisodeSampler(run.episodes.sampler.fold, shot, SEED)
    return [sampler.plan(index) for index in range(EPISODES)]


def files(run: SimpleNamespace, image_id: str) -> tuple[Path, Path]:
    source = run.episodes.source
    return source.image_path(image_id), source.label_path(image_id)


def examples(run: SimpleNamespace, plan: EpisodePlan, kind: str = "mask") -> list[Example]:
    """The supports of an episode as a user gives them: image files, and masks of that kind."""
    made = []
    for image_id in plan.supports:
        image, label = files(run, image_id)
        ids = annotate(read_label(label), plan.class_id, kind, image_id)
        mask = np.where(ids == 255, 255, ids == plan.class_id).astype(np.uint8)
        made.append(Example(image, mask=mask))
    return made


@pytest.mark.parametrize(
    ("shot", "kshot", "kind", "zoom"),
    [
        (1, "model", "mask", 0),
        (1, "model", "bbox", 0),
        (2, "prototype", "mask", 1.5),
        (2, "ensemble", "mask", 0),
    ],
)
def test_scores_and_masks_equal_those_of_test_py_bit_for_bit(
    small_run: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    shot: int,
    kshot: str,
    kind: str,
    zoom: float,
) -> None:
    of_both = [f"Eval.kshot={kshot}", f"Eval.support_zoom={zoom}"]
    words = [*small_run.words, f"Data.shot={shot}", *of_both, f"Data.ann_type={kind}"]
    counts = [f"Eval.seeds=[{SEED}]", f"Eval.episodes={EPISODES}", "Eval.visualize=0"]
    call = ["test.py", "--config", str(small_run.config), "--gpus", "0", *words, *counts]
    monkeypatch.setattr(sys, "argv", call)
    main(test_entry.test)
    result = json.loads((small_run.folder / "run/result.json").read_text())
    expected = result["seeds"][str(SEED)]["final"]["classes"]

    predictor = Predictor.from_checkpoint(small_run.checkpoint, overrides=of_both)
    given, transform = small_run.episodes, predictor.transform
    dataset = EpisodeDataset(
        given.source, given.sampler, transform, given.base_table.numpy(), given.classes, kind
    )
    store = FeatureStore(predictor.model.encoder, dataset)
    fold = given.sampler.fold
    known = sorted(fold.by_class)
    totals = BinaryTotals(len(known), torch.device("cpu"))
    for plan in plans(small_run, shot):
        labeled = examples(small_run, plan, kind)
        predictor.add_class("object", labeled)
        image, label = files(small_run, plan.query)
        got = predictor.predict(image)
        target = binary_mask(torch.from_numpy(read_label(label)), plan.class_id)
        totals.add(torch.from_numpy(got.mask), target, known.index(plan.class_id))
        with torch.no_grad():  # as the evaluator computes it
            query, supports = store.encode_query(plan.query)[0], store.supports([plan])
            prediction = predictor.model.match(query, supports, kshot=kshot)
            final = predictor.transform.to_image(prediction.final, target.shape)
        assert torch.equal(torch.from_numpy(got.scores), final[1:])
        assert torch.equal(torch.from_numpy(got.mask), argmax_channels(final).byte())
    found = dict(zip(map(fold.name, known), (100 * totals.class_iou()).tolist(), strict=True))
    assert found == expected and 0 < sum(found.values()) < 100 * len(found)


def test_a_support_is_encoded_once_for_all_queries(
    predictor: Predictor, small_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, encoder = [], predictor.model.encoder
    query, supports = encoder.query, encoder.supports
    monkeypatch.setattr(encoder, "query", lambda x: passes.append(len(x)) or query(x))
    monkeypatch.setattr(
        encoder,
        "supports",
        lambda x, *more: passes.append(x.shape[:2].numel()) or supports(x, *more),
    )
    plan = plans(small_run)[0]
    predictor.add_class("object", examples(small_run, plan))
    queries = small_run.episodes.sampler.fold.images
    for index in range(20):
        predictor.predict(files(small_run, queries[index % len(queries)])[0])
    assert 21 <= sum(passes) <= 1.1 * 21


def test_several_classes_share_an_index_mask_and_the_highest_score_wins(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    first, second = plans(small_run)[:2]
    query = files(small_run, first.query)[0]
    alone = []
    for plan in (first, second):
        predictor.clear()
        predictor.add_class("object", examples(small_run, plan))
        alone.append(predictor.predict(query))
    assert all(result.mask.any() and not result.mask.all() for result in alone)
    predictor.clear()
    for name, plan in (("one", first), ("two", second)):
        predictor.add_class(name, examples(small_run, plan))
    assert predictor.names == ("one", "two")
    got = predictor.predict(query)
    assert got.mask.dtype == np.uint8 and got.mask.shape == read_image(query).shape[:2]
    scores = np.stack([result.scores[0] for result in alone])
    assert np.array_equal(got.scores, scores)
    offered = np.where([result.mask == 1 for result in alone], scores, -np.inf)
    wanted = np.where(np.isfinite(offered).any(0), offered.argmax(0) + 1, 0)
    assert np.array_equal(got.mask, wanted) and set(np.unique(wanted)) == {0, 1, 2}
    stages = predictor.explain(query, "two")
    assert np.array_equal(stages.final, alone[1].mask)
    assert np.array_equal(predictor.explain(query).final, alone[0].mask)


def test_add_class_replaces_a_class_of_the_same_name_in_its_position(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    image, plan = files(small_run, plans(small_run)[0].query)[0], plans(small_run)[0]
    predictor.add_class("one", examples(small_run, plan))
    predictor.add_class("two", examples(small_run, plan))
    before = predictor.predict(image).scores
    predictor.add_class("one", Example(image, box=Box(0, 0, 60, 60)))
    after = predictor.predict(image).scores
    assert predictor.names == ("one", "two")
    assert not np.array_equal(after[0], before[0]) and np.array_equal(after[1], before[1])


def test_stages_have_the_size_of_the_image(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    plan = plans(small_run)[0]
    predictor.add_class("object", examples(small_run, plan))
    image = read_image(files(small_run, plan.query)[0])
    stages = predictor.explain(image)
    for values in (stages.prior, stages.initial):
        assert values.dtype == np.float32 and values.shape == image.shape[:2]
        assert 0 <= values.min() < values.max() <= 1
    assert len(stages.refinements) == 3
    for mask in (*stages.refinements, stages.final):
        assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 1}


def test_initial_stage_is_the_cosine_of_prototype_and_query(
    predictor: Predictor, small_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, matched = plans(small_run)[0], []
    match = predictor.model.match

    def recorded(*args: object, **options: object) -> Prediction:
        matched.append(match(*args, **options))
        return matched[-1]

    monkeypatch.setattr(predictor.model, "match", recorded)
    predictor.add_class("object", examples(small_run, plan))
    image = read_image(files(small_run, plan.query)[0])
    got = predictor.explain(image).initial
    cosine = matched[0].initial_mask * TEMPERATURE
    assert 0 <= cosine.min() and cosine.max() <= 1 + 1e-6
    wanted = predictor.transform.to_image(cosine, image.shape[:2])[0]
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6)


def test_a_class_takes_any_number_of_supports(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    images = [files(small_run, name)[0] for name in small_run.episodes.sampler.fold.images[:6]]
    labeled = [Example(image, box=Box(40, 40, 160, 160)) for image in images]
    for shot in (1, 2, 5):
        predictor.add_class("object", labeled[:shot])
        assert np.isfinite(predictor.predict(images[5]).scores).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (333, 65), (65, 65)])
def test_result_has_the_size_of_the_image(
    predictor: Predictor, small_run: SimpleNamespace, shape: tuple[int, int]
) -> None:
    predictor.add_class("object", examples(small_run, plans(small_run)[0]))
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    got = predictor.predict(noise)
    assert got.mask.shape == shape and got.scores.shape == (1, *shape)


# --- refused arguments ----------------------------------------------------------------------------


def test_names_that_cannot_be_used_are_refused(predictor: Predictor) -> None:
    for call in (predictor.predict, predictor.explain):
        with pytest.raises(UserError, match="there is no class yet; call add_class first"):
            call(PICTURE)
    with pytest.raises(UserError, match="class cap: unknown; the classes are: none yet"):
        predictor.explain(PICTURE, "cap")
    predictor.add_class("cup", Example(PICTURE, mask=OBJECT))
    with pytest.raises(UserError, match="class cap: unknown; the classes are: cup"):
        predictor.explain(PICTURE, "cap")
    with pytest.raises(UserError, match="class '': the name is empty; give a name"):
        predictor.add_class("", Example(PICTURE, mask=OBJECT))
    with pytest.raises(UserError, match="class cup: there are no examples; give at least one"):
        predictor.add_class("cup", [])
    predictor._supports = dict.fromkeys(map(str, range(254)), predictor._supports["cup"])
    with pytest.raises(UserError, match="class cup: an index mask holds 254 classes; give fewer"):
        predictor.add_class("cup", Example(PICTURE, mask=OBJECT))


def test_files_that_are_no_checkpoint_of_train_py_are_refused(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    def refused(name: str, words: str, **options: object) -> None:
        with pytest.raises(UserError, match=words) as refusal:
            Predictor.from_checkpoint(tmp_path / name, **options)
        assert "\n" not in str(refusal.value) and str(tmp_path / name) in str(refusal.value)

    state = read_checkpoint(small_run.checkpoint)
    write_checkpoint(tmp_path / "base.pth", state_dict=state["model"], base_miou=1.0)
    write_checkpoint(tmp_path / "weights.pth", **state["model"])
    write_checkpoint(tmp_path / "half.pth", config=state["config"])
    (tmp_path / "text.pth").write_text("no checkpoint")
    refused("none.pth", "no such checkpoint")
    refused("text.pth", "torn, or not a PyTorch checkpoint")
    for name in ("base.pth", "weights.pth"):
        refused(name, "not a checkpoint of train.py, it holds no config; name a best.pth")
    refused("half.pth", "it holds no model")
    odd = {**state["config"], "Data": {**state["config"]["Data"], "sise": 65}}
    write_checkpoint(tmp_path / "odd.pth", model=state["model"], config=odd)
    refused("odd.pth", "unknown key Data.sise; did you mean Data.size")
    write_checkpoint(tmp_path / "good.pth", model=state["model"], config=state["config"])
    words = ["Data.split=1", "Method.backbone=vgg16", "Method.pretrained=none"]
    refused("good.pth", "another architecture", overrides=words)


@pytest.mark.parametrize("device", ["gpu", "cuda:7"])
def test_missing_device_is_refused(small_run: SimpleNamespace, device: str) -> None:
    with pytest.raises(UserError, match=f"^device .*{device}.*: .*write cpu"):
        Predictor.from_checkpoint(small_run.checkpoint, device)


def test_checkpoint_with_options_for_gpus_works_on_the_cpu(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    words = ["Speed.tf32=true", "Speed.cudnn_benchmark=true", "Eval.precision=fp16"]
    cfg = load_config(small_run.config, [*small_run.words, *words, "Train.precision=fp16"])
    state = read_checkpoint(small_run.checkpoint)
    write_checkpoint(tmp_path / "gpu.pth", model=state["model"], config=to_dict(cfg))
    scores = []
    for path in (small_run.checkpoint, tmp_path / "gpu.pth"):
        predictor = Predictor.from_checkpoint(path)
        predictor.add_class("object", Example(PICTURE, mask=OBJECT))
        scores.append(predictor.predict(PICTURE).scores)
    assert np.array_equal(*scores)
