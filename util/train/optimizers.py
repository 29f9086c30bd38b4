"""Which parameter learns at which rate: the one place that says it (method 6).

Every trainable parameter is in exactly one group, or `build_optimizers` raises and names it.
"""

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from model import AMFormer
from util.config import Config
from util.runtime.errors import UserError

# Trainable by nature and in no published optimiser; each has a switch in `Method`.
PUBLISHED_EXCEPTIONS = {
    "train_parts": lambda name: name.startswith("detail_mining.") and name.endswith(".parts"),
    "train_kshot": lambda name: name.startswith("ensemble.kshot."),
}


def _group_of(name: str) -> tuple[str, str] | None:
    """(player, kind) of a parameter, None where no group takes it."""
    if name.startswith("object_mining."):
        return "G", "transformer"
    if name.startswith("clue."):
        return "G", "other"
    if name.startswith("ensemble."):
        return "G", "merge"
    if name.startswith("detail_mining.discriminators."):
        return "D", "other"
    if name.startswith("detail_mining.attention."):
        # As published: the one bias is that of the LayerNorm.
        return "D", "other" if name.endswith(".bias") else "transformer"
    return None


def build_optimizers(model: AMFormer, cfg: Config) -> tuple[Optimizer, Optimizer]:
    """(AdamW of G, Adam with L2 of D) over every trainable parameter; freezes the exceptions.

    A group's own rate is `multiplier` times the schedule's.

    Raises:
        UserError: a trainable parameter has no group.
    """
    for name, parameter in model.named_parameters():
        for switch, matches in PUBLISHED_EXCEPTIONS.items():
            if matches(name):
                parameter.requires_grad_(getattr(cfg.Method, switch))

    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = _group_of(name)
        if group is None:
            raise UserError(
                f"{name} is trainable and no optimiser takes it: see util/train/optimizers.py"
            )
        groups.setdefault(group, []).append(parameter)

    train = cfg.Train

    def settings(player: str) -> list[dict]:
        rates = {"transformer": 1.0, "other": train.lr_multiplier}
        rates["merge"] = train.merge_lr_multiplier
        return [
            {"params": groups[player, kind], "multiplier": rate, "lr": train.lr * rate}
            for kind, rate in rates.items()
            if (player, kind) in groups
        ]

    decay = train.weight_decay
    return (
        AdamW(settings("G"), betas=(0.9, 0.999), weight_decay=decay, fused=True),
        Adam(settings("D"), betas=(0.9, 0.999), weight_decay=decay, fused=True),
    )


def set_lr(optimizer: Optimizer, rate: float) -> None:
    """Gives each group `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def lr_schedule(rate: float, iteration: int, total: int, power: float) -> float:
    """The published schedule: rate (1 - (i + 1) / total)^power, set before iteration i from 0."""
    return rate * (1 - (iteration + 1) / total) ** power
