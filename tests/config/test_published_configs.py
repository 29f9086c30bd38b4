"""Every key of the published configs has a line in docs/published_configs.md."""

import re

import pytest
import yaml
from helpers import ROOT

from util.config import KEYS, load_config
from util.data.batches import Batches
from util.runtime.distributed import Ranks

PAGE = ROOT / "docs/published_configs.md"
PUBLISHED = yaml.safe_load((ROOT / "tests/golden/published_keys.yaml").read_text())


def rows() -> dict[str, str]:
    """Return published key -> what the page says that it is here."""
    found: dict[str, str] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            theirs, ours = (cell.strip() for cell in line.strip("|").split("|")[:2])
            for key in re.findall(r"`([\w.]+)`", theirs):
                assert key not in found, f"{key} has two lines"
                found[key] = ours
    return found


@pytest.mark.parametrize("system", PUBLISHED)
def test_every_published_key_has_a_line(system: str) -> None:
    keys = {f"{section}.{k}" for section, names in PUBLISHED[system].items() for k in names}
    assert len(keys) > 50 and not keys - rows().keys()


def test_page_has_no_key_that_nobody_published() -> None:
    known = {f"{s}.{k}" for found in PUBLISHED.values() for s, ks in found.items() for k in ks}
    assert rows().keys() == known


def test_keys_of_the_page_exist_here() -> None:
    for key, ours in rows().items():
        named = re.findall(r"`([A-Z]\w+\.\w+)`", ours)
        assert named or ours == "none", key
        assert set(named) <= KEYS.keys(), key


@pytest.mark.parametrize(
    ("config", "words", "each"),
    [
        ("pascal/pascal_split0_resnet50", ["Train.batch_size=32"], 8),
        ("coco/coco_split0_resnet50", ["Train.batch_size=16"], 4),
    ],
)
def test_documented_override_gives_the_published_total_on_four_gpus(
    config: str, words: list[str], each: int
) -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    assert words[0] in page
    size = load_config(ROOT / f"config/{config}.yaml", words).Train.batch_size
    for rank in range(4):
        share = next(iter(Batches(1000, size, 1, Ranks(rank, 4, None))))
        assert len(share) == each
