"""AMFormer: few-shot segmentation with an object-mining and a detail-mining transformer.

"Focus on Query: Adversarial Mining Transformer for Few-Shot Segmentation", NeurIPS 2023.
"""

import logging
import sys
import warnings

# mmcv announces its successor; without compiled operators (none are needed here) torch and mmcv
# say so. Neither is of use to a reader of the log who asked for no warnings.
if not sys.warnoptions:
    warnings.filterwarnings("ignore", module="mmcv")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from model.amformer import AMFormer, Prediction  # noqa: E402
from model.backbones import check_size  # noqa: E402

__all__ = ["AMFormer", "Prediction", "build_model"]


def build_model(cfg) -> AMFormer:
    """The model that a config describes, with random weights; reads no file.

    Args:
        cfg: see `util.config.load_config`.

    Raises:
        ValueError: there is no such backbone, or it does not take images of `Data.size`.
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
