"""What can be configured: every key with its default, its limits and a description.

To add a key, add a line to its section here, and run `python -m util.config.write_docs`.
"""

from dataclasses import fields
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from util.config.kinds import (
    Controls,
    File,
    Fraction,
    NonEmptyFile,
    Number,
    Precision,
    Range,
    Scales,
    Seeds,
    Shares,
    Size,
    Texts,
    TrainedOn,
    Weights,
    key,
)
from util.folds import AnnotationKind, fold_of
from util.runtime.system import cores

AMFORMER, TRANSFORMERS = ("amformer",), ("amformer", "hdmnet")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class DataSection:
    """Which images, which fold, and how images are augmented."""

    data_set: Literal["pascal", "coco", "custom", "mix"] = key(
        "pascal", "custom: your own data set; mix: several, see mix"
    )
    data_root: File = key("data/VOCdevkit2012/VOC2012", "folder of the data set", names_input=True)
    list_dir: File = key("lists/pascal", "folder of the fold lists", names_input=True)
    novel_in_training: Literal["drop", "background"] = key(
        "drop", "training images that hold a novel object: left out, or the object is background"
    )
    split: int = key(0, "the fold, 0 to 3; custom: any number, part of the lists' names", ge=0)
    trained_on: TrainedOn = key(
        "",
        "coco: test only, on the PASCAL classes that are novel in this fold of COCO; other: test"
        " only, a model of any other data set",
    )
    known: Texts = key(
        (),
        "trained_on other: names of the model's base classes, in the order of its channels; []: as"
        " the checkpoint says",
    )
    overlap: Literal["refuse", "remove"] = key(
        "refuse",
        "trained_on other: classes to test whose names are among the model's base classes are an"
        " error, or left out",
    )
    classes: Texts = key(
        (), "custom, mix: class names in the order of their ids; []: as classes.txt"
    )
    novel: Texts = key(
        (),
        "custom: names of the novel classes of this fold; []: as novel_<split>.txt; trained_on"
        " other: of the classes to test, [] without that file: all; mix: [] none",
    )
    base: Texts = key(
        (), "custom: names of the classes to train on; []: as base.txt, or all that are not novel"
    )
    mix: Texts = key(
        (),
        "mix: its data sets, each as pascal:FOLDER, coco:FOLDER or custom:FOLDER (data_root of it)",
        names_input=True,
    )
    mix_weights: Weights = key(
        (), "mix: how often episodes are drawn within each set, as relative weights; []: equally"
    )
    min_pixels: int = key(2048, "pixels of a class that make an image a support or a query", ge=1)
    use_split_coco: bool = key(True, "COCO folds hold out every fourth class (false: 20 in a row)")
    shot: int = key(1, "supports per episode (K)", ge=1, le=1000)
    class_balance: Fraction = key(
        0.0, "training: 0 draws images evenly; else a class of n images as often as n^(1 - value)"
    )
    same_query: int = key(
        1,
        "training: so many episodes in a row have one query, and ask for its classes in turn; an"
        " epoch is so many times as long",
        ge=1,
    )
    absent: Fraction = key(
        0.0, "training: share of the episodes whose supports are of a class that the query lacks"
    )
    absent_supports: Literal["any", "beside"] = key(
        "any",
        "such supports: any, or from images that also hold a class of the query, if there are any",
    )
    own_view: Fraction = key(
        0.0,
        "training: share of the episodes that are not absent, whose supports are other views of"
        " the query image; the class may have fewer than min_pixels there",
    )
    size: Size = key(473, "pixels of the input, 1 mod 8: its side, or [height, width]")
    augment: bool = key(True, "scale, rotate, blur and flip the training episodes")
    flip: bool = key(False, "without augment: flip images at random, which a feature store allows")
    crop: Shares = key(
        (1.0, 1.0),
        "range of the random part of a training image, as a share of its sides; it holds half of"
        " the class, or is the whole image if 31 parts do not",
    )
    scale: Range = key((0.9, 1.1), "range of the random scale")
    rotate: Number = key(10.0, "largest random rotation in degrees", ge=0, le=180)
    ann_type: AnnotationKind = key("mask", "how supports are labeled")
    missing: Literal["error", "skip"] = key("error", "what to do about listed images not on disk")
    broken: Literal["stop", "skip"] = key("stop", "unreadable training images; skip: count them")
    cache: File = key(
        "", "folder for decoded images and masks (VOC: 0.7 MB for each); '': none", neutral=True
    )
    workers: int = key(
        8, "processes that load images, per rank; at most one per core", ge=0, neutral=True
    )


@dataclass(frozen=True, config=_STRICT)
class MethodSection:
    """The network, and the oddities of the published one (docs/deviations.md)."""

    name: Literal["amformer", "hdmnet", "bam", "pfenet"] = key("amformer", "the system")
    backbone: str = key(
        "resnet50",
        "network that encodes the images",
        pattern=r"^(resnet50c?|resnet101c?|vgg16|timm/[\w.]+)$",
        examples=["resnet50", "resnet101", "vgg16", "resnet50c", "resnet101c", "timm/<name>"],
    )
    pretrained: NonEmptyFile = key(
        "download", "ImageNet weights: download, package, none, or a file"
    )
    pre_weight: File = key(
        "",
        "file of the base learner; train.sh trains it if it is missing; pfenet: it takes only the"
        " backbone from it, or, if empty, the weights of pretrained",
        names_input=True,
    )
    projection_init: Literal["linear", "trunc_normal"] = key(
        "linear",
        "first weights of G's q, k, v, o: of torch's Linear, or truncated normal 0.02",
        systems=AMFORMER,
    )
    low_fea: Literal["layer2", "layer3", "layer4"] = key(
        "layer2", "stage of the backbone whose Gram matrices are compared"
    )
    kshot_trans_dim: int = key(
        2, "hidden channels of the K-shot weights; 0: no such layer", ge=0, le=1000
    )
    fix_bn: bool = key(
        True, "all batch norms, also new ones, stay in eval mode", systems=TRANSFORMERS
    )
    mining_softmax: Literal["query", "key"] = key(
        "query", "axis of the mining softmax", systems=AMFORMER
    )
    mask_threshold: Number = key(
        0.7, "initial mask: smallest cosine / 0.1 kept", systems=AMFORMER, ge=-10, le=10
    )
    base_dropout: bool = key(True, "dropout stays on in the frozen base learner in training")
    discriminator_sigmoid: bool = key(True, "sigmoid before the BCE with logits", systems=AMFORMER)
    train_parts: bool = key(
        False, "train the part queries (as published: not trained)", systems=AMFORMER
    )
    train_kshot: bool = key(
        False, "train the K-shot weights (as published: not trained)", systems=AMFORMER
    )
    ppm_scales: Scales = key(
        (60.0, 30.0, 15.0, 8.0),
        "cells a side of each scale of the enrichment; at most 1.0: as a share of the grid",
        systems=("pfenet",),
    )
    train_backbone_norms: bool = key(
        True,
        "the frozen backbone's batch norms use and track the statistics of the training batches",
        systems=("pfenet",),
    )
    base_map: Literal["all", "unshown", "none"] = key(
        "all",
        "base classes that the ensemble takes for background: all; all but those that the base"
        " learner sees in the supports; or none",
        systems=AMFORMER,
    )


@dataclass(frozen=True, config=_STRICT)
class BaseSection:
    """Stage one: the base learner on the base classes of the fold."""

    train_list: Literal["all", "fold"] = key(
        "all", "training images: all, novel objects as background, or those of the fold's list"
    )
    freeze_backbone: bool = key(False, "train only the head")
    size: Size = key(417, "pixels of the random crop, 1 mod 8: its side, or [height, width]")
    augment: bool = key(True, "scale, rotate, blur, flip and crop at random")
    scale: Range = key((0.5, 2.0), "range of the random scale")
    rotate: Number = key(10.0, "largest random rotation in degrees", ge=0, le=180)
    batch_size: int = key(12, "images per step, over all ranks", ge=1)
    lr: Number = key(2.5e-4, "learning rate of the backbone", gt=0)
    head_lr_multiplier: Number = key(10.0, "multiple of lr for PPM and head", gt=0)
    momentum: Fraction = key(0.9, "momentum of SGD")
    weight_decay: Number = key(1e-4, "weight decay of SGD", ge=0)
    power: Number = key(0.9, "exponent of the polynomial decay", ge=0)
    epochs: int = key(100, "passes over the training images", ge=1)
    max_iterations: int = key(0, "iterations of the stage; 0: all epochs", ge=0)
    warmup: bool = key(False, "raise the rate from 0.1 to 1 of lr over the first half epoch")
    save_freq: int = key(
        0, "keep a checkpoint of every so many epochs; 0: none", ge=0, neutral=True
    )
    evaluate: bool = key(True, "validate, and keep the best epoch; false: keep the last one")
    val_period: int = key(1, "epochs between two validations", ge=1)
    val_images: int = key(0, "validation images; 0: all", ge=0)
    val_resize: Literal["keep", "stretch"] = key(
        "keep", "validation images: keep proportions and pad, or stretch to the square"
    )
    stop_interval: int = key(75, "stop after so many epochs without a better mIoU; 0: never", ge=0)
    seed: int = key(321, "seed of weights, order and augmentation", ge=0)


@dataclass(frozen=True, config=_STRICT)
class TrainSection:
    """Stage two: adversarial training. `resume`, `print_freq`, `save_minutes`: stage one, too."""

    batch_size: int = key(8, "episodes per step, over all ranks", ge=1)
    lr: Number = key(2e-4, "learning rate of the transformers", gt=0)
    lr_multiplier: Number = key(10.0, "multiple of lr for the other parts", gt=0)
    merge_lr_multiplier: Number = key(
        10.0, "multiple of lr for the ensemble's weights", systems=TRANSFORMERS, gt=0
    )
    weight_decay: Number = key(0.01, "weight decay: of AdamW, Adam (discriminator), or SGD", ge=0)
    momentum: Fraction = key(0.9, "momentum of SGD", systems=("bam", "pfenet"))
    power: Number = key(0.9, "exponent of the polynomial decay", ge=0)
    epochs: int = key(300, "passes over the training list", ge=1)
    max_iterations: int = key(0, "iterations of the whole run; 0: all epochs", ge=0)
    aux_weight1: Number = key(1.0, "weight of the distillation loss", ge=0)
    dice_weight: Number = key(
        0.0, "weight of 1 - Dice of G's masks, a loss of its own", systems=AMFORMER, ge=0
    )
    balanced_weight: Number = key(
        0.0,
        "weight of G's cross entropy with object and background of equal weight",
        systems=AMFORMER,
        ge=0,
    )
    adversarial: bool = key(
        True, "train with the discriminator; false: the generator alone", systems=AMFORMER
    )
    adversarial_weight: Number = key(
        0.1, "weight of the adversarial loss once per period", systems=AMFORMER, ge=0
    )
    adversarial_rest_weight: Number = key(
        1e-9, "that weight in other generator steps", systems=AMFORMER, ge=0
    )
    adversarial_period: int = key(5, "iterations per period, odd", systems=AMFORMER, ge=1)
    diversity_weight: Number = key(
        0.01, "weight of the diversity loss of the parts", systems=AMFORMER, ge=0
    )
    seed: int = key(321, "seed of weights, episodes and dropout", ge=0)
    seed_deterministic: bool = key(False, "deterministic kernels: slower, repeatable to the bit")
    save_path: NonEmptyFile = key("exp/run", "folder of checkpoints, curves, config", neutral=True)
    replay: File = key(
        "", "nonfinite_*.pth of a run: repeat that step, show what is not finite", neutral=True
    )
    resume: File = key("", "checkpoint to resume from; auto: the newest in save_path", neutral=True)
    save_minutes: Number = key(
        10.0, "minutes between two last.pth; 0: only at validations and stops", ge=0, neutral=True
    )
    print_freq: int = key(10, "iterations between two progress lines", ge=1, neutral=True)
    warmup: bool = key(False, "raise the rate from 0.1 to 1 of lr over the first half epoch")
    save_freq: int = key(
        0, "keep a checkpoint of every so many epochs; 0: none", ge=0, neutral=True
    )
    evaluate: bool = key(True, "validate, and keep the best checkpoint; false: only the last one")
    val_period: int = key(1, "epochs between two validations", ge=1)
    sub_epoch_val: bool = key(False, "validate in the middle of an epoch, too; not of the first")
    stop_interval: int = key(75, "stop after so many epochs without a better mIoU; 0: never", ge=0)
    feature_store: bool = key(False, "keep the frozen features; needs Data.augment false")
    precision: Precision = key("fp32", "full precision, or autocast to bf16 or fp16")
    accumulate: int = key(1, "parts in which a rank computes its share of a batch", ge=1)


@dataclass(frozen=True, config=_STRICT)
class EvalSection:
    """Validation and test."""

    val_size: Size | Literal[0] = key(0, "pixels of the input, as Data.size; 0: Data.size")
    resize: Literal["stretch", "keep"] = key(
        "stretch", "images: stretch to that size, or keep proportions and pad (as BAM)"
    )
    support_zoom: Number = key(
        0.0,
        "show of a support the part around its object, so many times as large as the box of it; 0:"
        " all of it",
        ge=0,
    )
    ori_resize: bool = key(True, "score at the size of the image; false: at that of the input")
    order: Literal["list", "permuted", "classes"] = key(
        "list",
        "queries: the list's own order, from its start; a random one for each seed; or the classes"
        " take turns, each with a random image",
    )
    seeds: Seeds = key(tuple(range(321, 331)), "seeds of the test, one pass each")
    episodes: int = key(1000, "test episodes per seed", ge=1)
    protocol: Literal["fss", "gfss_bam", "gfss_diam"] = key(
        "fss", "test: novel classes alone, or with the base classes in one map, as BAM or DIaM"
    )
    way: int = key(1, "test: novel classes of an episode (N), in one map", ge=1)
    merge_tau: Number = key(
        0.5, "gfss: probability above which a pixel is novel (BAM: 0.9)", gt=0, lt=1
    )
    val_episodes: int = key(1000, "episodes of a validation", ge=1)
    val_seed: int = key(321, "seed of the validation episodes", ge=0)
    verify: File = key("", "result.json to repeat and compare; writes nothing", neutral=True)
    control: Controls = key(
        ("other_class",),
        "false supports that test episodes are scored with, too (docs/protocol.md); none: no such",
    )
    control_share: Number = key(
        0.1, "share of the test episodes that are scored with them", gt=0, le=1
    )
    absent: Fraction = key(
        0.0, "episodes without the object beside the others, as a share of their number"
    )
    records: Literal["parquet", "csv"] = key(
        "parquet", "format of the file with a row of each test episode", neutral=True
    )
    visualize: int = key(0, "episodes to draw: so many spread, worst, best", ge=0, neutral=True)
    batch_size: int = key(1, "episodes per step, per rank", ge=1)
    kshot: Literal["model", "ensemble", "prototype"] = key(
        "model", "how K supports give one prediction (docs/deviations.md)"
    )
    weight: NonEmptyFile = key(
        "best", "what is tested: best, last, or a checkpoint", names_input=True
    )
    cache_gb: Number = key(2.0, "memory for encoded images in GB, per rank", ge=0, neutral=True)
    precision: Precision = key("fp32", "full precision, or autocast to bf16 or fp16")


@dataclass(frozen=True, config=_STRICT)
class SpeedSection:
    """Options that are faster and change the last digits (docs/performance.md)."""

    channels_last: bool = key(False, "store the encoder's weights with channels innermost")
    compile: bool = key(False, "torch.compile of the encoder and of the generator's pyramid")
    tf32: bool = key(False, "GPU: TF32 in convolutions and matrix products")
    cudnn_benchmark: bool = key(False, "GPU: cuDNN tries its algorithms and picks the fastest")


@dataclass(frozen=True, config=_STRICT)
class Config:
    """All sections; immutable."""

    Data: DataSection = DataSection()
    Method: MethodSection = MethodSection()
    Base: BaseSection = BaseSection()
    Train: TrainSection = TrainSection()
    Eval: EvalSection = EvalSection()
    Speed: SpeedSection = SpeedSection()

    @property
    def num_base_classes(self) -> int:
        """Numbers of the base learner for base classes (`Fold.channels`), without background."""
        return len(fold_of(self.Data).learned.channels)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Key of a size -> height and width in pixels."""
        given = {"Data.size": self.Data.size, "Base.size": self.Base.size}
        given["Eval.val_size"] = self.Eval.val_size or self.Data.size
        return {k: (v, v) if isinstance(v, int) else v for k, v in given.items()}

    @property
    def workers(self) -> int:
        """`Data.workers`, but no more than this machine's cores."""
        return min(self.Data.workers, cores())

    @property
    def name(self) -> str:
        """Short name of the experiment, such as `pascal_split0_5shot_resnet50`."""
        shots = f"_{self.Data.shot}shot" if self.Data.shot > 1 else ""
        net = self.Method.backbone.removeprefix("timm/")
        trained_on = f"{self.Data.trained_on}2" if self.Data.trained_on else ""
        system = "" if self.Method.name == "amformer" else f"_{self.Method.name}"
        return f"{trained_on}{self.Data.data_set}_split{self.Data.split}{shots}{system}_{net}"


SECTIONS: dict[str, Any] = {section.name: type(section.default) for section in fields(Config)}
"""Section -> its class."""

KEYS: dict[str, FieldInfo] = {
    f"{section}.{name}": field
    for section, cls in SECTIONS.items()
    for name, field in cls.__pydantic_fields__.items()
}
"""`Section.key` -> annotation, default, description, limits and facts of a key."""


def facts_of(name: str) -> dict[str, Any]:
    """Return the facts of the key `Section.key`; see `key`."""
    facts = KEYS[name].json_schema_extra
    assert isinstance(facts, dict)
    return facts


def keys_with(fact: Literal["neutral", "names_input"]) -> frozenset[str]:
    """Return the `Section.key` of all keys with a fact; see `key`."""
    return frozenset(name for name in KEYS if facts_of(name)[fact])
