"""Runs -> a page to read, and the paper's table: `python -m util.report`."""
