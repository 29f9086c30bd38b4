"""Everything around the networks: data, training, evaluation, prediction, reports.

Beside the folders: `folds.py` (which classes a fold holds out), `features.py` (episodes as the
frozen encoder sees them), `speed.py` (options that are faster). Each folder's `__init__.py` says
what it holds; the names that it hands on stand in `__init__.pyi`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository's folder."""
