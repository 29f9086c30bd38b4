from .compare import config_hash, numeric_keys, setting_differences, tree_differences
from .environment import list_crc, record_environment
from .verify import compare_results, read_comparable, read_result

__all__ = [
    "compare_results",
    "config_hash",
    "list_crc",
    "numeric_keys",
    "read_comparable",
    "read_result",
    "record_environment",
    "setting_differences",
    "tree_differences",
]
