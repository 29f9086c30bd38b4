"""Small downloads of other data sets of drawn shapes, in the layouts of their papers.

Each maker returns what it has drawn, for a comparison pixel by pixel.
"""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_masks

Drawn = dict[str, dict[str, np.ndarray]]
"""Name of a picture -> class -> where it is (bool [H,W])."""


def blob(rng: np.random.Generator, height: int = 40, width: int = 48) -> np.ndarray:
    """A filled ellipse or box at a random place, inside the picture (bool [H,W])."""
    mask = np.zeros((height, width), np.uint8)
    x, y = int(rng.integers(14, width - 14)), int(rng.integers(14, height - 14))
    across, up = (int(v) for v in rng.integers(6, 13, 2))
    if rng.random() < 0.5:
        cv2.ellipse(mask, (x, y), (across, up), 0, 0, 360, 1, -1)
    else:
        cv2.rectangle(mask, (x - across, y - up), (x + across, y + up), 1, -1)
    return mask == 1


def write_picture(path: Path, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Write a picture in which the mask is bright, as JPEG or PNG."""
    picture = rng.integers(0, 90, (*mask.shape, 3), np.uint8)
    picture[mask] += 140
    write(path, picture)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def bright(mask: np.ndarray) -> np.ndarray:
    """A mask as such data sets store it: 255 on the object, three channels."""
    return np.repeat(255 * mask.astype(np.uint8)[..., None], 3, axis=2)


def make_fss1000(root: Path, images: int = 3, **parts: int) -> Drawn:
    """Make class folders and lists; `parts`: how many classes trn, val and test have."""
    rng, drawn, number = np.random.default_rng(3), Drawn(), 0
    (root / "splits").mkdir(parents=True)
    for part, count in parts.items():
        names = [f"thing {number + i:04d}" for i in range(count)]
        number += count
        # Not in order, as the published lists.
        (root / f"splits/{part}.txt").write_text("".join(f"{n}\n" for n in reversed(names)))
        for name in names:
            for i in range(1, images + 1):
                mask = blob(rng)
                write_picture(root / name / f"{i}.jpg", mask, rng)
                write(root / name / f"{i}.png", bright(mask))
                drawn[f"{name}_{i}"] = {name: mask}
    return drawn


def make_isic(root: Path, images: int = 3, folders: bool = True) -> Drawn:
    rng, drawn = np.random.default_rng(4), Drawn()
    names, rows = ("melanoma", "nevus", "seborrheic_keratosis"), ["ID,Class"]
    pictures, masks = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
    for number in range(3 * images):
        name, mask = f"ISIC_{number:07d}", blob(rng)
        kind = number % 3
        rows.append(f"{name},{names[kind]}")
        write_picture(root / pictures / (str(kind + 1) * folders) / f"{name}.jpg", mask, rng)
        write(root / masks / f"{name}_segmentation.png", 255 * mask.astype(np.uint8))
        drawn[name] = {names[kind]: mask}
    (root / "class_id.csv").write_text("\n".join(rows))
    return drawn


DEEPGLOBE = ("agriculture", "urban", "rangeland", "forest", "water", "barren")


def make_deepglobe(root: Path, tiles: int = 8) -> Drawn:
    """Tiles of stripes of three classes; each class's folder has the tile again."""
    rng, drawn = np.random.default_rng(5), Drawn()
    for number in range(tiles):
        name, classes = f"{number}_sat_{number % 6}0", rng.choice(6, 3, replace=False)
        stripes = np.sort(rng.integers(0, 3, 42))[None].repeat(42, axis=0)
        picture = rng.integers(0, 255, (42, 42, 3), np.uint8)
        for place, kind in enumerate(classes):
            mask = stripes == place
            folder = root / str(kind + 1) / "test"
            write(folder / f"origin/{name}.jpg", picture)
            write(folder / f"groundtruth/{name}.png", bright(mask))
            drawn.setdefault(name, {})[DEEPGLOBE[kind]] = mask
    return drawn


def make_chestx(root: Path, images: int = 4) -> Drawn:
    rng, drawn = np.random.default_rng(6), Drawn()
    for number in range(images):
        name, mask = f"CHNCXR_{number:04d}_0", blob(rng) | blob(rng)
        write_picture(root / f"CXR_png/{name}.png", mask, rng)
        write(root / f"masks/{name}_mask.png", 255 * mask.astype(np.uint8))
        drawn[name] = {"lung": mask}
    return drawn


def run_lengths(mask: np.ndarray) -> dict:
    code = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def box_polygon(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """A box as a polygon; its last row and column belong to it as OpenCV fills it."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def make_lvis(root: Path, categories: int = 23, images: int = 3) -> Drawn:
    """Pickles and pictures; every picture has two categories that overlap, one a run-length code.

    `categories` of them have several pictures in both files, one more has a single one.
    """
    rng, drawn = np.random.default_rng(7), Drawn()
    number = 0
    for subset in ("train", "val"):
        table: dict[int, dict] = {}
        for category in range(categories):
            for _ in range(images):
                number += 1
                name, mask = f"{number:012d}", blob(rng)
                x0, y0 = (int(v) for v in rng.integers(0, 20, 2))
                box = np.zeros_like(mask)
                box[y0 : y0 + 16, x0 : x0 + 16] = True
                write_picture(root / f"coco/{subset}2017/{name}.jpg", mask | box, rng)
                # LVIS numbers its categories with gaps here, and the file is not in their order.
                first, second = (7 + 3 * ((5 * c) % categories) for c in (category, category + 1))
                for key, shape in (
                    (first, run_lengths(mask)),
                    (second, [box_polygon(x0, y0, x0 + 15, y0 + 15)]),
                ):
                    entry = {"height": 40, "width": 48, "annotations": [{"segmentation": shape}]}
                    table.setdefault(key, {})[f"{subset}2017/{name}.jpg"] = entry
                drawn[name] = {f"category_{first}": mask, f"category_{second}": box}
        if subset == "val":
            table[2] = {name: entry for name, entry in [next(iter(table[first].items()))]}
            drawn[Path(next(iter(table[2]))).stem]["category_2"] = drawn[
                Path(next(iter(table[2]))).stem
            ][f"category_{first}"]
        (root / f"lvis_{subset}.pkl").write_bytes(pickle.dumps(table))
    return drawn


THINGS = {
    "animals": {"cat": ("HEAD", "EYES", "TAIL"), "dog": ("HEAD", "LEGS")},
    "indoor": {"bottle": ("BODY", "CAP")},
    "person": {"person": ("HEAD", "HAIR", "ARMS")},
    "vehicles": {"aeroplane": ("BODY", "TAIL"), "car": ("WHEELS", "WINDOW")},
}


def make_pascal_part(root: Path, images: int = 3) -> Drawn:
    """Images of two objects each, whose parts overlap: what is drawn is cut to the object's box."""
    base, rng, drawn = root / "VOCdevkit/VOC2010", np.random.default_rng(8), Drawn()
    lists: dict = {}
    number = 0
    for kind, things in THINGS.items():
        entries = lists.setdefault(kind, {"object": {}})["object"]
        for thing, parts in things.items():
            entries[thing] = {"part": {part: {"train": [], "val": []} for part in parts}}
            for subset in ("train", "val"):
                for _ in range(images):
                    number += 1
                    name = f"2008_{number:06d}"
                    objects = []
                    for place in range(2):
                        masks = {part: blob(rng, 40, 48) for part in parts}
                        corners = (4 + place, 2, 44, 38 - place)
                        objects.append(_object(thing, masks, corners))
                        left, top, right, bottom = corners
                        drawn[f"{name}_{place}"] = {
                            f"{thing}+{part}": mask[top:bottom, left:right]
                            for part, mask in masks.items()
                            if (thing, part) != ("aeroplane", "TAIL")
                        }
                    write_picture(base / f"JPEGImages/{name}.jpg", blob(rng), rng)
                    path = base / f"Annotations_Part_json_merged_part_classes/{name}.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(
                        json.dumps({"object": [*objects, _object("tree", {}, (0, 0, 9, 9))]})
                    )
                    for part in parts:
                        entries[thing]["part"][part][subset].append(name)
    entries["car"]["part"]["ANTENNA"] = {"train": [name], "val": []}
    (base / "all_obj_part_to_image.json").write_text(json.dumps(lists))
    return drawn


def _object(thing: str, masks: dict[str, np.ndarray], corners: tuple[int, ...]) -> dict:
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, corners), strict=True))
    parts = [{"name": part, "mask": [run_lengths(mask)]} for part, mask in masks.items()]
    return {"name": thing, "bndbox": box, "parts": parts}
