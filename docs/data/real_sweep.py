"""Draw the chart of docs/results.md: `python docs/data/real_sweep.py [OUT.png]`."""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
COLORS = {"1": "#0072b2", "2": "#56b4e9", "3": "#009e73", "10": "#d55e00"}
MARKERS = {"0.1": "v", "1": "o", "3": "s", "10": "D"}

rows = list(csv.DictReader((HERE / "real_sweep.csv").read_text().splitlines()))
figure, axes = plt.subplots(figsize=(8, 4.2))
for row in rows:
    axes.scatter(
        int(row["scored_at"]), float(row["final"]), s=42, alpha=0.85,
        color=COLORS[row["lr_multiplier"]], marker=MARKERS[row["merge_lr_multiplier"]],
        edgecolor="black" if row["other_overrides"] else "none",
    )  # fmt: skip
for value, color in COLORS.items():
    axes.scatter([], [], color=color, label=f"lr_multiplier {value}")
for value, marker in MARKERS.items():
    axes.scatter([], [], color="gray", marker=marker, label=f"merge_lr_multiplier {value}")
axes.scatter([], [], color="white", edgecolor="black", label="other overrides, too")
axes.set(xlabel="iteration that was scored", ylabel="final mIoU, %", ylim=(46, 60))
axes.grid(alpha=0.3)
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "images/real_sweep.png"
figure.savefig(out, dpi=110, bbox_inches="tight")
