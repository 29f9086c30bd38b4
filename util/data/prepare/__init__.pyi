from .base_annotation import prepare_base_annotation
from .coco import prepare_coco
from .coco_json import Instances, load_instances, rasterize
from .custom import prepare_custom
from .voc import prepare_voc

__all__ = [
    "Instances",
    "load_instances",
    "prepare_base_annotation",
    "prepare_coco",
    "prepare_custom",
    "prepare_voc",
    "rasterize",
]
