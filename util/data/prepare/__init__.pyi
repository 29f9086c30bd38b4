from .base_annotation import prepare_base_annotation
from .coco import prepare_coco
from .coco_json import Instances, load_instances
from .custom import prepare_custom
from .folders import prepare_chestx, prepare_deepglobe, prepare_fss1000, prepare_isic
from .lvis import prepare_lvis
from .pascal_part import prepare_pascal_part
from .shapes import rasterize
from .voc import prepare_voc

__all__ = [
    "Instances",
    "load_instances",
    "prepare_base_annotation",
    "prepare_chestx",
    "prepare_coco",
    "prepare_custom",
    "prepare_deepglobe",
    "prepare_fss1000",
    "prepare_isic",
    "prepare_lvis",
    "prepare_pascal_part",
    "prepare_voc",
    "rasterize",
]
