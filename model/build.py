"""Config -> model."""

from model.amformer.system import AMFormer
from model.backbones import check_size


def build_model(cfg) -> AMFormer:
    """The model that a config describes, with random weights; reads no file.

    Args:
        cfg: see `util.config.load_config`.

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
