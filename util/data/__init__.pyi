from .base_images import BaseLearnerDataset, open_base_images
from .batches import Batches, FixedBatches
from .dataset import (
    Episode,
    EpisodeBatch,
    EpisodeDataset,
    binary_mask,
    collate,
    eval_transform,
    open_episodes,
)
from .episodes import EpisodePlan, EpisodeSampler
from .image_io import UnreadableFile, read_image, read_label, voc_palette
from .lists import FoldList, fold_list, write_lists
from .loading import SkippingDataset, load_batches, skipped_by_all_ranks
from .mixed import open_source
from .source import SUBSETS, Source
from .tables import Table, load_table
from .transform import (
    BaseLearnerTransform,
    EvalTransform,
    FlipTransform,
    KeepTransform,
    TrainTransform,
)
from .weak import annotate

__all__ = [
    "SUBSETS",
    "BaseLearnerDataset",
    "BaseLearnerTransform",
    "Batches",
    "Episode",
    "EpisodeBatch",
    "EpisodeDataset",
    "EpisodePlan",
    "EpisodeSampler",
    "EvalTransform",
    "FixedBatches",
    "FlipTransform",
    "FoldList",
    "KeepTransform",
    "SkippingDataset",
    "Source",
    "Table",
    "TrainTransform",
    "UnreadableFile",
    "annotate",
    "binary_mask",
    "collate",
    "eval_transform",
    "fold_list",
    "load_batches",
    "load_table",
    "open_base_images",
    "open_episodes",
    "open_source",
    "read_image",
    "read_label",
    "skipped_by_all_ranks",
    "voc_palette",
    "write_lists",
]
