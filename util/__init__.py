"""Everything around the networks: data, training, evaluation, prediction, reports."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository's folder."""
