"""Which parameter learns at which rate, and which stays frozen (method 6).

Every trainable parameter is in exactly one group, or `build_optimizers` raises an error. The K-shot
weights learn only with `Method.train_kshot`, the part queries of D only with `Method.train_parts`.
"""

from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from model import AMFormer, System
from model.system import kind_of
from util.config import Config
from util.data import Batches
from util.runtime.errors import UserError

# No published optimizer has these parameters; a key of `Method` turns each kind on.
PUBLISHED_EXCEPTIONS = {
    "train_parts": lambda name: name.startswith("detail_mining.") and name.endswith(".parts"),
    "train_kshot": lambda name: name.startswith("ensemble.kshot."),
}


def _group_of(name: str) -> tuple[str, str] | None:
    """Return the network ("G" or "D") and the kind of a parameter; None: no group has it."""
    groups = {
        "object_mining.": ("G", "transformer"),
        "clue.": ("G", "other"),
        "ensemble.": ("G", "merge"),
        "detail_mining.discriminators.": ("D", "other"),
        # As published: the only bias is that of the LayerNorm.
        "detail_mining.attention.": ("D", "other" if name.endswith(".bias") else "transformer"),
    }
    return next((group for prefix, group in groups.items() if name.startswith(prefix)), None)


def build_optimizers(model: AMFormer, cfg: Config) -> tuple[Optimizer, Optimizer]:
    """Return AdamW for G and Adam with L2 for D, over every trainable parameter.

    Parameters of `PUBLISHED_EXCEPTIONS` are frozen unless their key is on. Each group learns at
    `multiplier` times the rate of `lr_schedule`. Raises `UserError` if a trainable parameter has no
    group.
    """
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        for key, matches in PUBLISHED_EXCEPTIONS.items():
            if matches(name):
                parameter.requires_grad_(getattr(cfg.Method, key))
        if not parameter.requires_grad:
            continue
        group = _group_of(name)
        if group is None:
            remedy = "give it a group in util/train/optimizers.py"
            raise UserError(f"{name} is trainable but in no optimizer; {remedy}")
        groups.setdefault(group, []).append(parameter)

    train, decay, rates = cfg.Train, cfg.Train.weight_decay, _multipliers(cfg)

    def settings(network: str) -> list[dict[str, Any]]:
        return [
            {"params": groups[network, kind], "multiplier": rate, "lr": train.lr * rate}
            for kind, rate in rates.items()
            if (network, kind) in groups
        ]

    g = AdamW(settings("G"), betas=(0.9, 0.999), weight_decay=decay, fused=True)
    return g, Adam(settings("D"), betas=(0.9, 0.999), weight_decay=decay, fused=True)


def build_optimizer(model: System, cfg: Config) -> Optimizer:
    """Return the optimizer of `System.OPTIMIZER` over every trainable parameter of a system.

    Kinds of parameters are those of `System.GROUPS`; "frozen" ones are frozen here. Raises
    `UserError` if a parameter has no kind.
    """
    train, rates, found = cfg.Train, _multipliers(cfg), dict[str, dict[str, Any]]()
    for name, parameter in model.named_parameters():
        kind = kind_of(type(model), name)
        if kind is None:
            raise UserError(f"{name} has no group: add it to {type(model).__name__}.GROUPS")
        if kind == "frozen":
            parameter.requires_grad_(False)
            continue
        start = {"params": [], "multiplier": rates[kind], "lr": train.lr * rates[kind]}
        found.setdefault(kind, start)["params"].append(parameter)
    groups = list(found.values())
    if model.OPTIMIZER == "sgd":
        return SGD(groups, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)
    return AdamW(groups, betas=(0.9, 0.999), weight_decay=train.weight_decay, fused=True)


def _multipliers(cfg: Config) -> dict[str, float]:
    """Return the kinds of parameters that learn, and how many times `Train.lr` each does."""
    train = cfg.Train
    return {"transformer": 1.0, "other": train.lr_multiplier, "merge": train.merge_lr_multiplier}


def set_lr(optimizer: Optimizer, rate: float) -> None:
    """Give each group `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def lr_schedule(rate: float, iteration: int, total: int, power: float, warmup: int = 0) -> float:
    """Return the published rate of iteration i, from 0: rate * (1 - (i + 1) / total)^power.

    While i + 1 < `warmup`, it is rate * (0.1 + 0.9 * (i + 1) / warmup).
    """
    if iteration + 1 < warmup:
        return rate * (0.1 + 0.9 * (iteration + 1) / warmup)
    return rate * (1 - (iteration + 1) / total) ** power


def warmup_iterations(section: str, batches: Batches) -> int:
    """Return the iterations of `<section>.warmup`: half an epoch.

    Raises `UserError` if that is none, or more than the whole run.
    """
    count = batches.per_epoch // 2
    if not 0 < count < batches.total:
        what = f"half an epoch has {count} iterations and the run {batches.total}"
        raise UserError(f"{section}.warmup: {what}; train longer, or remove it")
    return count


def count_parameters(model: nn.Module) -> str:
    """Return a line about the number of a model's weights, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
    return f"parameters: {total:,}, of which {trained:,} are trained"
