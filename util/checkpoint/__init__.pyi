from .file import (
    load_state_dict_strictly,
    read_checkpoint,
    read_checkpoint_once,
    serialize_checkpoint,
    state_dict_differences,
    state_dict_in,
    write_checkpoint,
)
from .load import (
    checkpoint_path,
    load_base_learner,
    load_checkpoint,
    trained_model,
)
from .origin import (
    require_unseen,
    training_of_stages,
    validated_alike,
    with_known_classes,
)

__all__ = [
    "checkpoint_path",
    "load_base_learner",
    "load_checkpoint",
    "load_state_dict_strictly",
    "read_checkpoint",
    "read_checkpoint_once",
    "require_unseen",
    "serialize_checkpoint",
    "state_dict_differences",
    "state_dict_in",
    "trained_model",
    "training_of_stages",
    "validated_alike",
    "with_known_classes",
    "write_checkpoint",
]
