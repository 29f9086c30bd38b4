"""Weight files -> models: the base learner of stage two, and the checkpoint that is tested."""

from pathlib import Path

from model import AMFormer
from model.base_learner import BaseLearner
from model.published import base_from_published
from util import checkpoint


def load_base_learner(base: BaseLearner, cfg) -> None:
    """Fills the encoder from `Method.pre_weight`: our stage one's file, or one from BAM as it is.

    Raises:
        ValueError: no such file, a torn one, or one of another architecture.
    """
    path = cfg.Method.pre_weight
    if not Path(path).is_file():
        raise ValueError(
            f"Method.pre_weight: there is no file {path!r}; train.sh makes it, or: "
            "python train_base.py --config FILE"
        )
    state = checkpoint.load(path)
    found = checkpoint.weights(state, "state_dict", path)
    state = base_from_published(found, base.state_dict())
    checkpoint.load_into(base, state, path)


def checkpoint_path(cfg) -> Path:
    """The file that `Eval.weight` means: `best` or `last` of the run, or a path."""
    weight = cfg.Eval.weight
    return (
        Path(cfg.Train.save_path, f"{weight}.pth") if weight in ("best", "last") else Path(weight)
    )


def load_checkpoint(model: AMFormer, path: Path) -> dict:
    """Fills a model from a checkpoint of train.py; returns all that the file holds.

    Raises:
        ValueError: no such file, a torn one, or one of another architecture.
    """
    state = checkpoint.load(path)
    checkpoint.load_into(model, checkpoint.weights(state, "model", path), path)
    return state
