"""review.html: every result, the doubtful ones first, from the disk alone."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.browsers import CHROMIUM, FLAGS
from PIL import Image
from playwright.sync_api import sync_playwright

from util.predict.review import doubt_order, review_page


def line(image: str, **scores: float | None) -> dict:
    classes = {
        name: {"index": number, "pixels": 12, "score": score, "here": None}
        for number, (name, score) in enumerate(scores.items(), 1)
    }
    files = {"preview": f"review/{image}.jpg", "overlay": f"overlays/{image}.png"}
    return {"image": image, "width": 10, "height": 12, "classes": classes, **files}


def test_lowest_score_of_a_found_class_comes_first_and_unread_queries_before_all() -> None:
    lines = [
        line("sure", a=0.9, b=0.8),
        line("one class is doubtful", a=0.9, b=0.3),
        line("one class is missing", a=0.7, b=None),
        {"image": "torn", "error": "torn: cannot be read"},
        line("nothing", a=None, b=None),
    ]
    page = review_page(lines).decode()
    shown = re.findall(r"<strong>(.*?)</strong>|role=\"alert\">(.*?)<", page)
    names = ["".join(found) for found in shown]
    assert names == [
        "torn: cannot be read", "nothing", "one class is doubtful", "one class is missing", "sure",
    ]  # fmt: skip
    assert [doubt_order(each) for each in lines] == [0.8, 0.3, 0.7, float("-inf"), 0.0]


def test_scores_shares_and_absent_classes_are_told() -> None:
    one = line("a.jpg", cup=0.456, plate=None)
    one["classes"]["plate"]["here"] = False
    page = " ".join(review_page([one]).decode().split())
    assert "cup: score 0.46, 10.0 % of the picture" in page
    assert 'plate: nothing found<span class="tag">not here</span>' in page
    assert page.count("not here") == 1


def test_names_are_escaped_in_html_and_in_links() -> None:
    page = review_page([line('a "#1" <b>.jpg', **{"<i>cup": 1.0})]).decode()
    assert "<b>" not in page and "<i>cup" not in page
    assert 'href="overlays/a%20%22%231%22%20%3Cb%3E.jpg.png"' in page


def test_names_of_any_bytes_are_linked() -> None:
    page = review_page([line(os.fsdecode(b"a\xff.jpg"), cup=1.0)]).decode()
    assert 'src="review/a%FF.jpg.jpg"' in page and "<strong>a?.jpg</strong>" in page


@pytest.fixture
def results(predict: Callable, small_run: SimpleNamespace, tmp_path: Path) -> Path:
    """The folder of a run on three photographs with awkward names and a file that is none."""
    source, names = small_run.episodes.source, small_run.episodes.sampler.fold.images[:3]
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(names):
        Image.open(source.image_path(name)).save(photos / f"100% no #{number}.png")
    (photos / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    support = f"{photos}/100% no #0.png:box=30,30,150,150"
    assert predict("--support", support, "--query", photos, "--out", tmp_path / "out")[0] == 2
    return tmp_path / "out"


def test_page_opens_from_disk_with_all_pictures_and_asks_no_server(results: Path) -> None:
    if not CHROMIUM.is_file():
        pytest.skip(f"needs a browser, {CHROMIUM}")
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((results / "review.html").as_uri())
        error = page.get_by_role("alert").inner_text()
        assert error.endswith("replace it with a whole copy, or leave it out")
        pictures = page.locator("img")
        assert pictures.count() == 3
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            page.wait_for_function(
                "picture => picture.naturalWidth > 0", arg=picture.element_handle()
            )
        links = [link.get_attribute("href") for link in page.locator(".card a").all()]
        for link in links:
            assert page.goto((results / "review.html").as_uri()).ok
            page.locator(f'a[href="{link}"]').click()
            assert page.locator("img").evaluate("picture => picture.naturalWidth") > 0
        browser.close()
    assert len(asked) > 4 and all(url.startswith("file://") for url in asked)


def test_pictures_show_the_overlay_at_a_size_that_loads_fast(results: Path) -> None:
    lines = [json.loads(text) for text in (results / "predictions.jsonl").read_text().splitlines()]
    for each in (each for each in lines if "error" not in each):
        preview = np.asarray(Image.open(results / each["preview"]), float)
        drawn = Image.open(results / each["overlay"]).resize(preview.shape[1::-1], Image.BOX)
        assert max(preview.shape) <= 480
        assert np.abs(preview - np.asarray(drawn, float)).mean() < 8
