"""Lists of BAM, HDMNet and AMNet, used unchanged: `<Data.list_dir>/fss_list/{train,val}/`.

`data_list_<fold>.txt` has a line for each query: the paths of image and mask. The text of
`sub_class_file_list_<fold>.txt` is a Python dict: class id -> such pairs, its supports. Only the
names of the files count here, the folders are those of `Data.data_root`. Nothing is run as code.
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from util.config import DataSection
from util.folds import OWN_CLASSES
from util.runtime.errors import UserError
from util.runtime.texts import read_lines

Lists = tuple[list[str], dict[int, list[str]]]
"""Ids of the queries; class id -> ids of its supports."""


def find_fss_list(data: DataSection, subset: str) -> Path | None:
    """Return the file of queries that belongs to a config's fold, None if there is none.

    Published lists of COCO are those of `Data.use_split_coco: true`.
    """
    path = Path(data.list_dir, "fss_list", subset, f"data_list_{data.split}.txt")
    is_published = data.data_set not in OWN_CLASSES and not data.trained_on and data.use_split_coco
    return path if is_published and path.is_file() else None


def read_fss_list(path: Path, classes: Iterable[int], known: Mapping[str, object]) -> Lists:
    """Read a file of queries, and that of the supports beside it.

    `classes` are those of the fold, `known` has the ids of the images of the data set. Raises
    `UserError` if a file is missing or torn, or does not belong to the fold or the data set.
    """
    other = path.with_name(path.name.replace("data_list", "sub_class_file_list"))
    try:
        images = [_image_id(line.split()[0]) for line in read_lines(path)]
        pairs = ast.literal_eval("\n".join(read_lines(other)))
        supports = {int(c): [_image_id(image) for image, _ in found] for c, found in pairs.items()}
    except FileNotFoundError:
        raise UserError(f"{other}: no such file; copy it there, or move {path} away") from None
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError):
        mistake = f"{path} or {other.name}: not a list of BAM"
        raise UserError(f"{mistake}; copy both again, or move them away") from None
    if set(supports) != set(classes):
        wanted = ", ".join(map(str, sorted(classes)))
        remedy = "copy the lists of this fold and data set there, or move them away"
        raise UserError(f"{other}: does not hold the classes of this fold ({wanted}); {remedy}")
    for image_id in (*images, *(i for ids in supports.values() for i in ids)):
        if image_id not in known:
            mistake = f"lists {image_id}, which is not in this data set"
            raise UserError(f"{path}: {mistake}; check Data.data_set and Data.data_root")
    return images, supports


def _image_id(path: str) -> str:
    return PurePosixPath(path).stem
