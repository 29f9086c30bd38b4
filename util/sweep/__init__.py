"""Sweeps: settings x folds x seeds, trained and tested, with one table at the end.

`spec.py` reads a sweep file, `plan.py` says what has to run and what has run, `work.py` runs the
stages of one run as processes, `pools.py` spreads runs over this machine or Slurm, `table.py`
compares the settings. The command is `python -m util.sweep` (docs/sweeps.md).
"""
