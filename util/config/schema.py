"""What can be configured: every key, its default, its limits and one line about it.

`util.config` reads YAML files and overrides into these classes.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from util.folds import ANNOTATION_KINDS, fold_of


def key(default: Any, text: str, **limits: Any) -> Any:
    """A field of a section.

    Args:
        default: value when no file and no override gives the key.
        text: one line for the documentation (`metadata['help']`).
        **limits: `choices` (a tuple), `pattern` (a regular expression), `low` and `high`
            (inclusive), `above` (exclusive); for a list they hold for each element. A list is as
            long as its default, or has one or more elements with `many`, or any number of them,
            of the type `kind`, with that.
    """
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class DataSection:
    """Which images, which fold, and how they are augmented."""

    data_set: str = key(
        "pascal", "pascal, coco, or custom: your own", choices=("pascal", "coco", "custom")
    )
    data_root: str = key("data/VOCdevkit2012/VOC2012", "folder of the data set")
    list_dir: str = key("lists/pascal", "folder of the fold lists that util.data writes")
    split: int = key(0, "the fold, 0 to 3; custom: a number for the names of its lists", low=0)
    trained_on: str = key(
        "",
        "coco: only test, on the PASCAL classes that this fold of COCO never trained on",
        choices=("", "coco"),
    )
    classes: tuple[str, ...] = key((), "custom: names in id order; else classes.txt", kind=str)
    novel: tuple[str, ...] = key((), "custom: the classes that this fold holds out", kind=str)
    min_pixels: int = key(2048, "pixels that make a mask a support or a query", low=1)
    use_split_coco: bool = key(True, "COCO folds take every fourth class (False: 20 in a row)")
    shot: int = key(1, "supports per episode (K)", low=1)
    class_balance: float = key(
        0.0,
        "training: 0 draws images; a class of n of them is drawn in proportion to n^(1 - this)",
        low=0.0,
        high=1.0,
    )
    size: int = key(473, "side of the square input in pixels, 1 mod 8", low=33)
    augment: bool = key(True, "scale, rotate, blur and flip the training episodes")
    flip: bool = key(False, "without augment: mirror images at random, which a store can keep")
    scale: tuple[float, float] = key((0.9, 1.1), "range of the random scale", above=0.0)
    rotate: float = key(10.0, "largest random rotation in degrees", low=0.0, high=180.0)
    ann_type: str = key("mask", "how supports are labelled", choices=ANNOTATION_KINDS)
    missing: str = key(
        "error", "images of the lists that are not on disk", choices=("error", "skip")
    )
    broken: str = key(
        "stop",
        "training: an image that cannot be read, a batch whose workers die; skip: count, go on",
        choices=("stop", "skip"),
    )
    cache: str = key("", "folder for decoded images and masks (0.7 MB for one of VOC's); '': none")
    workers: int = key(8, "processes that load images, per rank; no more than cores", low=0)


@dataclass(frozen=True)
class MethodSection:
    """The network, and the oddities of the published one (docs/deviations.md)."""

    backbone: str = key(
        "resnet50",
        "resnet50, resnet101, vgg16 or timm/<name>",
        pattern=r"resnet50|resnet101|vgg16|timm/[\w.]+",
    )
    pretrained: str = key(
        "download", "ImageNet weights: download, package, none, or a file", pattern=r".+"
    )
    pre_weight: str = key("", "file of the base learner; train.sh trains it when absent")
    fix_bn: bool = key(True, "batch norms, also new ones, stay in eval mode")
    mining_softmax: str = key("query", "axis of the mining softmax", choices=("query", "key"))
    mask_threshold: float = key(
        0.7, "initial mask: smallest cosine / 0.1 that is kept", low=-10.0, high=10.0
    )
    base_dropout: bool = key(True, "dropout stays on in the frozen base learner in training")
    discriminator_sigmoid: bool = key(True, "sigmoid before the BCE with logits")
    train_parts: bool = key(False, "train the part queries (as published: not trained)")
    train_kshot: bool = key(False, "train the K-shot weights (as published: not trained)")


@dataclass(frozen=True)
class BaseSection:
    """Stage one: the base learner on the base classes of the fold."""

    freeze_backbone: bool = key(False, "train only the head")
    size: int = key(417, "side of the random crop in pixels, 1 mod 8", low=33)
    augment: bool = key(True, "scale, rotate, blur, flip and crop at random")
    scale: tuple[float, float] = key((0.5, 2.0), "range of the random scale", above=0.0)
    rotate: float = key(10.0, "largest random rotation in degrees", low=0.0, high=180.0)
    batch_size: int = key(12, "images per step, over all ranks", low=1)
    lr: float = key(2.5e-4, "learning rate of the backbone", above=0.0)
    head_lr_multiplier: float = key(10.0, "learning rate of PPM and head over it", above=0.0)
    momentum: float = key(0.9, "momentum of SGD", low=0.0, high=1.0)
    weight_decay: float = key(1e-4, "weight decay of SGD", low=0.0)
    power: float = key(0.9, "exponent of the polynomial decay", low=0.0)
    epochs: int = key(100, "passes over the training list", low=1)
    max_iterations: int = key(0, "iterations of the stage; 0: all epochs", low=0)
    val_images: int = key(0, "validation images; 0: all", low=0)
    seed: int = key(321, "seed of weights, order and augmentation", low=0)


@dataclass(frozen=True)
class TrainSection:
    """Stage two: the adversarial game."""

    batch_size: int = key(8, "episodes per step, over all ranks", low=1)
    lr: float = key(2e-4, "learning rate of the transformers", above=0.0)
    lr_multiplier: float = key(10.0, "learning rate of the other parts over it", above=0.0)
    merge_lr_multiplier: float = key(
        10.0, "learning rate of the ensemble's weights over it", above=0.0
    )
    weight_decay: float = key(0.01, "weight decay of G (AdamW) and D (Adam)", low=0.0)
    power: float = key(0.9, "exponent of the polynomial decay", low=0.0)
    epochs: int = key(300, "passes over the training list", low=1)
    max_iterations: int = key(0, "iterations of the whole run; 0: all epochs", low=0)
    aux_weight1: float = key(1.0, "weight of the distillation loss", low=0.0)
    adversarial: bool = key(True, "play the game; False trains G alone")
    adversarial_weight: float = key(0.1, "weight of the adversarial loss once per period", low=0.0)
    adversarial_rest_weight: float = key(
        1e-9, "weight of the adversarial loss in the other G steps", low=0.0
    )
    adversarial_period: int = key(
        5, "iterations from one G step with adversarial_weight to the next, odd", low=1
    )
    diversity_weight: float = key(0.01, "weight of the diversity loss of the parts", low=0.0)
    seed: int = key(321, "seed of weights, episodes and dropout", low=0)
    seed_deterministic: bool = key(False, "deterministic kernels: slower, repeatable to the bit")
    save_path: str = key("exp/run", "folder of checkpoints, curves and config", pattern=r".+")
    replay: str = key("", "file of a step that was not finite: repeat that step alone, look where")
    resume: str = key("", "checkpoint to go on from; auto: the newest good one in save_path")
    save_minutes: float = key(
        10.0, "minutes between two last.pth; 0: only at validations and stops", low=0.0
    )
    print_freq: int = key(10, "iterations between two progress lines", low=1)
    val_period: int = key(1, "epochs between two validations", low=1)
    stop_interval: int = key(75, "stop after so many epochs without a better mIoU; 0: never", low=0)
    feature_store: bool = key(False, "keep the frozen features; needs Data.augment False")
    precision: str = key("fp32", "fp32, bf16 or fp16 autocast", choices=("fp32", "bf16", "fp16"))
    accumulate: int = key(1, "parts in which a rank takes its share of a batch", low=1)


@dataclass(frozen=True)
class EvalSection:
    """Validation and test."""

    seeds: tuple[int, ...] = key(
        tuple(range(321, 331)), "seeds of the test, one run each", low=0, many=True
    )
    episodes: int = key(1000, "test episodes per seed", low=1)
    val_episodes: int = key(1000, "episodes of a validation", low=1)
    val_seed: int = key(321, "seed of the validation episodes", low=0)
    verify: str = key("", "result.json of an earlier test: test again and compare, write nothing")
    visualize: int = key(0, "episodes that test.py draws: so many spread, worst, best", low=0)
    batch_size: int = key(1, "episodes per step, per rank", low=1)
    kshot: str = key(
        "model",
        "how K supports give one prediction (docs/deviations.md)",
        choices=("model", "ensemble", "prototype"),
    )
    weight: str = key("best", "what test.py loads: best, last, or a checkpoint file", pattern=r".+")
    cache_gb: float = key(2.0, "memory for what an evaluation encoded in GB, per rank", low=0.0)
    precision: str = key("fp32", "fp32, bf16 or fp16 autocast", choices=("fp32", "bf16", "fp16"))


@dataclass(frozen=True)
class SpeedSection:
    """Faster, and no longer the same to the last digit (docs/performance.md)."""

    channels_last: bool = key(False, "the encoder's weights with channels innermost")
    compile: bool = key(False, "torch.compile of the encoder and of G's pyramid")
    tf32: bool = key(False, "GPU: TF32 in convolutions and matrix products")
    cudnn_benchmark: bool = key(False, "GPU: cuDNN tries out its algorithms")


@dataclass(frozen=True)
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
        """Base classes of a fold, background not counted."""
        return len(fold_of(self.Data).learned.base)

    @property
    def workers(self) -> int:
        """`Data.workers`, but no more than this machine's cores."""
        return min(self.Data.workers, len(os.sched_getaffinity(0)))

    @property
    def name(self) -> str:
        """Short name of the experiment, such as `pascal_split0_5shot_resnet50`."""
        shots = f"_{self.Data.shot}shot" if self.Data.shot > 1 else ""
        net = self.Method.backbone.removeprefix("timm/")
        trained_on = f"{self.Data.trained_on}2" if self.Data.trained_on else ""
        return f"{trained_on}{self.Data.data_set}_split{self.Data.split}{shots}_{net}"
