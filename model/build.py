"""From a config to a model."""

from typing import Any, Protocol

from model.amformer.system import AMFormer
from model.backbones import check_size


class ModelConfig(Protocol):
    """What `build_model` reads of a config such as `util.config.Config`."""

    @property
    def Method(self) -> Any:
        """`backbone` and the keyword arguments of `AMFormer`."""

    @property
    def Data(self) -> Any:
        """`shot`: K supports per query; `size`: S pixels a side."""

    @property
    def num_base_classes(self) -> int:
        """Base classes of the fold, without background."""


def build_model(cfg: ModelConfig) -> AMFormer:
    """Build the model that a config describes, with random weights; reads no file.

    Raises:
        UserError: there is no such backbone, or it does not take images of `Data.size`.
    """
    method = cfg.Method
    model = AMFormer(
        method.backbone,
        cfg.num_base_classes,
        cfg.Data.shot,
        fix_bn=method.fix_bn,
        base_dropout=method.base_dropout,
        mask_threshold=method.mask_threshold,
        mining_softmax=method.mining_softmax,
        discriminator_sigmoid=method.discriminator_sigmoid,
    )
    check_size(model.encoder.base.backbone, cfg.Data.size, "Data.size")
    return model
