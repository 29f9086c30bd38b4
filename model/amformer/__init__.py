"""AMFormer. Start with `plain.py`, which states the whole system as equations."""
