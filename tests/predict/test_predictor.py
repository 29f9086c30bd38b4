"""The Predictor computes what test.py does, encodes nothing twice, and says what it cannot use."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import test as test_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config, to_dict
from util.data import weak
from util.data.dataset import EpisodeDataset, binary_mask
from util.data.episodes import EpisodeSampler, Plan
from util.data.image_io import read_image, read_label
from util.evaluate.evaluator import own_size
from util.evaluate.metrics import BinaryTotals, argmax_channels
from util.features import FeatureStore
from util.predict.predictor import Box, Points, Predictor, as_rgb
from util.runtime.cli import main

EPISODES, SEED = 4, 5


@pytest.fixture(scope="module")
def loaded(small_run: SimpleNamespace) -> Predictor:
    return Predictor.from_checkpoint(small_run.checkpoint)


@pytest.fixture
def predictor(loaded: Predictor) -> Predictor:
    """Without a support."""
    loaded.clear()
    return loaded


def plans(run: SimpleNamespace, shot: int = 1) -> list[Plan]:
    sampler = EpisodeSampler(run.episodes.sampler.fold, shot, SEED)
    return [sampler.plan(index) for index in range(EPISODES)]


def files(run: SimpleNamespace, image_id: str) -> tuple[Path, Path]:
    source = run.episodes.source
    return source.image_path(image_id), source.label_path(image_id)


def boxes(mask: np.ndarray) -> list[Box]:
    """What Data.ann_type bbox takes: a box around each part that is not tiny."""
    count, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    parts = [tuple(map(int, row)) for row in statistics[1:count] if row[4] >= weak.SMALLEST]
    return [Box(x, y, x + width, y + height) for x, y, width, height, _ in parts]


def set_up(predictor: Predictor, run: SimpleNamespace, plan: Plan, *, boxed: bool = False) -> None:
    """The supports of an episode, as one's own images and masks of them."""
    images, masks = [], []
    for image_id in plan.supports:
        image, label = files(run, image_id)
        mask = read_label(label)
        masks.append(np.where(mask == 255, 255, mask == plan.class_id).astype(np.uint8))
        images.append(image)
    predictor.set_support(images, [boxes(m == 1) for m in masks] if boxed else masks)


@pytest.mark.parametrize(
    ("shot", "kshot", "kind"),
    [
        (1, "model", "mask"),
        (1, "model", "bbox"),
        (2, "prototype", "mask"),
        (2, "ensemble", "mask"),
    ],
)
def test_scores_and_masks_are_those_of_test_py_bit_for_bit(
    small_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, shot: int, kshot: str, kind: str
) -> None:
    words = [*small_run.words, f"Data.shot={shot}", f"Eval.kshot={kshot}", f"Data.ann_type={kind}"]
    counts = [f"Eval.seeds=[{SEED}]", f"Eval.episodes={EPISODES}", "Eval.visualize=0"]
    call = ["test.py", "--config", str(small_run.config), "--gpus", "0", *words, *counts]
    monkeypatch.setattr(sys, "argv", call)
    main(test_entry.test)
    result = json.loads((small_run.folder / "run/result.json").read_text())
    expected = result["seeds"][str(SEED)]["final"]["classes"]

    predictor = Predictor.from_checkpoint(small_run.checkpoint, overrides=[f"Eval.kshot={kshot}"])
    given = small_run.episodes
    dataset = EpisodeDataset(
        given.source, given.sampler, given.transform, given.base_table.numpy(), given.classes, kind
    )
    store = FeatureStore(predictor.model.encoder, dataset)
    fold = given.sampler.fold
    known = sorted(fold.by_class)
    totals = BinaryTotals(len(known), torch.device("cpu"))
    for plan in plans(small_run, shot):
        set_up(predictor, small_run, plan, boxed=kind == "bbox")
        image, label = files(small_run, plan.query)
        got = predictor.predict(image)
        target = binary_mask(torch.from_numpy(read_label(label)), plan.class_id)
        totals.add(torch.from_numpy(got.mask), target, known.index(plan.class_id))
        with torch.no_grad():  # the evaluator's own steps
            batch = store.of_query(store.image(plan.query)[0], [plan])
            prediction = predictor.model.match(batch.query, batch.supports, kshot=kshot)
            final = own_size(prediction.final, prediction.size, target)
        assert torch.equal(torch.from_numpy(got.scores), final[1:])
        assert torch.equal(torch.from_numpy(got.mask), argmax_channels(final).byte())
    found = dict(zip(map(fold.name, known), (100 * totals.class_iou()).tolist(), strict=True))
    assert found == expected and 0 < sum(found.values()) < 100 * len(found)


def test_a_support_is_encoded_once_for_all_queries(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    passes, encoder = [], predictor.model.encoder
    hook = encoder.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0]))
    plan = plans(small_run)[0]
    set_up(predictor, small_run, plan)
    queries = small_run.episodes.sampler.fold.images
    for index in range(20):
        predictor.predict(files(small_run, queries[index % len(queries)])[0])
    hook.remove()
    images = sum(len(batch) for batch in passes)
    assert 21 <= images <= 1.1 * 21


def test_several_classes_share_an_index_mask(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    first, second = plans(small_run)[:2]
    query = files(small_run, first.query)[0]
    alone = []
    for plan in (first, second):
        predictor.clear()
        set_up(predictor, small_run, plan)
        alone.append(predictor.predict(query))
    assert all(result.mask.any() and not result.mask.all() for result in alone)
    set_up(predictor, small_run, first)
    image = files(small_run, first.supports[0])[0]
    predictor.clear()
    for name, plan in (("one", first), ("two", second)):
        set_up(predictor, small_run, plan)
        predictor._supports[name] = predictor._supports.pop("object")
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
    predictor.set_support(image, Box(0, 0, 60, 60), "one")  # replaces
    assert predictor.names == ("one", "two")
    assert not np.array_equal(predictor.predict(query).scores, scores)


def test_stages_are_masks_and_a_prior_at_the_image_s_own_size(
    predictor: Predictor, small_run: SimpleNamespace
) -> None:
    plan = plans(small_run)[0]
    set_up(predictor, small_run, plan)
    image = read_image(files(small_run, plan.query)[0])
    stages = predictor.explain(image)
    assert stages.prior.dtype == np.float32 and stages.prior.shape == image.shape[:2]
    assert 0 <= stages.prior.min() < stages.prior.max() <= 1
    masks = [stages.initial, *stages.refinements, stages.final]
    assert len(stages.refinements) == 3
    for mask in masks:
        assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 1}


def test_any_number_of_supports_serves(predictor: Predictor, small_run: SimpleNamespace) -> None:
    names = small_run.episodes.sampler.fold.images[:6]
    images = [files(small_run, name)[0] for name in names]
    for shot in (1, 2, 5):
        predictor.set_support(images[:shot], [Box(40, 40, 160, 160)] * shot)
        assert np.isfinite(predictor.predict(images[5]).scores).all()


# --- images and labels in every form --------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (333, 65), (65, 65)])
def test_images_of_any_size_come_back_at_it(
    predictor: Predictor, small_run: SimpleNamespace, shape: tuple[int, int]
) -> None:
    set_up(predictor, small_run, plans(small_run)[0])
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    got = predictor.predict(noise)
    assert got.mask.shape == shape and got.scores.shape == (1, *shape)


def test_arrays_pil_images_and_files_are_the_same_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (40, 30, 3), np.uint8)
    grey, deep = color[..., 0], rng.integers(0, 65536, (40, 30), np.uint16)
    rgba = np.dstack([color, np.full((40, 30), 7, np.uint8)])
    for name, array, wanted in (
        ("color", color, color),
        ("grey", grey, np.dstack([grey] * 3)),
        ("rgba", rgba, color),
        ("deep", deep, np.dstack([(deep >> 8).astype(np.uint8)] * 3)),
    ):
        picture = Image.fromarray(array)
        picture.save(tmp_path / f"{name}.png")
        for form in (array, picture, tmp_path / f"{name}.png", str(tmp_path / f"{name}.png")):
            assert np.array_equal(as_rgb(form), wanted), (name, type(form))
    palette = Image.fromarray(color).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(as_rgb(palette), as_rgb(tmp_path / "palette.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photographs_and_masks_are_turned_upright(tmp_path: Path, suffix: str) -> None:
    lying = np.zeros((32, 48, 3), np.uint8)
    lying[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(lying).save(path, exif=exif)
    upright = np.rot90(lying, -1)
    for form in (path, Image.open(path)):
        assert np.abs(as_rgb(form).astype(int) - upright).max() < 20
    Image.fromarray(lying[..., 0] // 255).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_label(tmp_path / "mask.png"), upright[..., 0] // 255)


def test_a_mask_counts_the_same_in_every_form(
    predictor: Predictor, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    image = read_image(files(small_run, plans(small_run)[0].query)[0])
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[30:150, 50:170], mask[:10] = 1, 255
    void = mask == 255
    Image.fromarray(np.where(void, 255, 9 * mask).astype(np.uint8)).save(tmp_path / "mask.png")
    forms = [mask, np.where(void, 255, 3 * mask).astype(np.int64), Image.fromarray(mask)]
    forms += [tmp_path / "mask.png", str(tmp_path / "mask.png")]
    scores = []
    for form in forms:
        predictor.set_support([image], [form])
        scores.append(predictor.predict(image).scores)
    assert all(np.array_equal(scores[0], other) for other in scores[1:])
    predictor.set_support(image, mask == 1)
    no_void = predictor.predict(image).scores
    predictor.set_support(image, Box(50, 30, 170, 150))
    assert np.array_equal(predictor.predict(image).scores, no_void)
    predictor.set_support(image, [Box(50, 30, 100, 150), Box(80, 30, 170, 150)])
    assert np.array_equal(predictor.predict(image).scores, no_void)


def test_points_are_the_discs_of_weak_labels() -> None:
    """What `Data.ann_type: point` draws is a disc of the same pen, cut to the object."""
    label = np.zeros((200, 300), np.uint8)
    cv2.circle(label, (140, 90), 60, 4, -1)
    drawn = weak.annotate(label, 4, "point", "a") == 4
    ys, xs = np.nonzero(drawn)
    centre = (round(xs.mean()), round(ys.mean()))
    disc = weak.discs(label.shape, [centre]) == 1
    assert np.array_equal(drawn, disc & (label == 4)) and disc.sum() > 100


# --- what cannot be used --------------------------------------------------------------------------

PICTURE = np.full((50, 80, 3), 90, np.uint8)
OBJECT = np.zeros((50, 80), np.uint8)
OBJECT[10:40, 20:60] = 1


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (PICTURE, OBJECT * 0, "image 1: no pixel of the mask is the object"),
        (PICTURE, OBJECT * 255, "255 means to ignore, so write 1"),
        (PICTURE, OBJECT[:-1], "the mask is 80x49 pixels and its image 80x50; the two must"),
        (PICTURE, OBJECT.T, "80x50, which its EXIF orientation has turned; the two must"),
        (PICTURE, OBJECT / 2, "whole numbers or booleans [H,W], given float64 [50, 80]"),
        (PICTURE, PICTURE, "given uint8 [50, 80, 3]"),
        (PICTURE, Box(0, 0, 81, 20), "the box 0,0,81,20 is empty or leaves the image of 80x50"),
        (PICTURE, Box(20, 10, 20, 40), "the box 20,10,20,40 is empty"),
        (PICTURE, Box(float("nan"), 0, 5, 5), "the box nan,0,5,5 is empty"),
        (PICTURE, [Box(0, 0, 9, 9), Box(-1, 0, 9, 9)], "the box -1,0,9,9 is empty or leaves"),
        (PICTURE, Points([(3, 4), (80, 4)]), "the point 80,4 is outside the image of 80x50"),
        (PICTURE, Points([]), "no pixel of the mask is the object"),
        (PICTURE, "no_mask.png", "no_mask.png: no such mask"),
        (PICTURE, Box(1, 1, 2, 2), "nothing is left of so small an object; mark more of it"),
        ("no_image.jpg", OBJECT, "no_image.jpg: no such image"),
        (PICTURE / 2, OBJECT, "uint8 or uint16, [H,W], [H,W,3] or [H,W,4], given float64"),
        (PICTURE[:, :0], OBJECT, "given uint8 [50, 0, 3]"),
        (Image.new("F", (80, 50)), OBJECT, "given float32 [50, 80]"),
        ([PICTURE, PICTURE], [OBJECT], "2 images and 1 masks; give one for each"),
        ([PICTURE], OBJECT, "1 images and 1 masks; give one for each"),
        ([], [], "0 images and 0 masks"),
    ],
)
def test_a_support_that_cannot_be_used_changes_nothing(
    predictor: Predictor, image: object, mask: object, words: str
) -> None:
    predictor.set_support(PICTURE, OBJECT, "kept")
    for name in ("new", "kept"):
        with pytest.raises(ValueError) as refusal:
            predictor.set_support(image, mask, name)
        message = str(refusal.value)
        assert words in message and "\n" not in message
    assert predictor.names == ("kept",)


def test_a_prediction_without_support_or_of_an_unknown_class_is_refused(
    predictor: Predictor,
) -> None:
    with pytest.raises(ValueError, match="no support yet; call set_support first"):
        predictor.predict(PICTURE)
    with pytest.raises(ValueError, match="no support yet"):
        predictor.explain(PICTURE)
    predictor.set_support(PICTURE, OBJECT, "cup")
    with pytest.raises(ValueError, match="no support is called 'cap'; there is cup"):
        predictor.explain(PICTURE, "cap")
    with pytest.raises(ValueError, match="support '': give a name"):
        predictor.set_support(PICTURE, OBJECT, "")


def test_files_of_another_kind_are_no_checkpoint(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    def refused(name: str, words: str, **options: object) -> None:
        with pytest.raises(ValueError, match=words) as refusal:
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
        refused(name, "no checkpoint of train.py, as it holds no config; name a best.pth")
    refused("half.pth", "as it holds no model")
    odd = {**state["config"], "Data": {**state["config"]["Data"], "sise": 65}}
    write_checkpoint(tmp_path / "odd.pth", model=state["model"], config=odd)
    refused("odd.pth", "unknown key Data.sise; did you mean Data.size")
    write_checkpoint(tmp_path / "good.pth", model=state["model"], config=state["config"])
    refused("good.pth", "another architecture", overrides=["Data.split=1", "Method.backbone=vgg16",
            "Method.pretrained=none"])  # fmt: skip


@pytest.mark.parametrize("device", ["gpu", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(small_run: SimpleNamespace, device: str) -> None:
    with pytest.raises(ValueError, match=f"^device .*{device}.*: .*write cpu"):
        Predictor.from_checkpoint(small_run.checkpoint, device)


def test_a_checkpoint_with_options_of_a_gpu_serves_on_the_cpu(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    words = ["Speed.tf32=true", "Speed.cudnn_benchmark=true", "Eval.precision=fp16"]
    cfg = load_config(small_run.config, [*small_run.words, *words, "Train.precision=fp16"])
    state = read_checkpoint(small_run.checkpoint)
    write_checkpoint(tmp_path / "gpu.pth", model=state["model"], config=to_dict(cfg))
    scores = []
    for path in (small_run.checkpoint, tmp_path / "gpu.pth"):
        predictor = Predictor.from_checkpoint(path)
        predictor.set_support(PICTURE, OBJECT)
        scores.append(predictor.predict(PICTURE).scores)
    assert np.array_equal(*scores)
