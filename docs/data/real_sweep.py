"""Draw the chart of docs/data/real_sweep.csv, the settings tried on the real photographs.

    python docs/data/real_sweep.py [FOLDER]

writes real_sweep.png into FOLDER, docs/images by default.
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SEED_COLORS = {"321": "#0072b2", "322": "#d55e00"}
CLASS_STYLES = {"dog": ("#009e73", "o"), "horse": ("#0072b2", "s"), "person": ("#d55e00", "^")}


def label(row: dict[str, str]) -> str:
    """Name the setting of a row: the two multipliers of lr, then what differs from most rows."""
    words = [f"{row['lr_multiplier']} / {row['merge_lr_multiplier']}"]
    words += ["full augmentation"] * (row["augment"] == "true")
    words += ["no mirroring"] * (row["flip"] == row["augment"] == "false")
    words += [f"batch {row['batch_size']}"] * (row["batch_size"] != "4")
    words += [f"lr {float(row['lr']):.0e}".replace("e-0", "e-")] * (row["lr"] != "0.0002")
    words += [f"class balance {row['class_balance']}"] * (row["class_balance"] != "0")
    return ", ".join(words)


rows = list(csv.DictReader((HERE / "real_sweep.csv").open(encoding="utf-8")))
settings = sorted(dict.fromkeys(map(label, rows)), key=lambda name: "," in name)
plt.rcParams.update(
    {"font.size": 11, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#dddddd"}
)
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), width_ratios=(1.5, 1))

for row in rows:
    color = SEED_COLORS[row["seed"]]
    y = settings.index(label(row)) + (0.24 if row["seed"] == "322" else 0)
    left.scatter(float(row["meta"]), y, 95, "white", edgecolors=color, linewidths=1.5)
    left.scatter(float(row["final"]), y, 45, color, zorder=3)
for seed, color in SEED_COLORS.items():
    left.scatter([], [], 45, color, label=f"final, seed {seed}")
    left.scatter([], [], 95, "white", edgecolors=color, linewidths=1.5, label=f"meta, seed {seed}")
left.set(
    title="mIoU by setting", xlabel="mIoU, percent", ylabel="lr_multiplier / merge_lr_multiplier"
)
left.set_yticks(range(len(settings)), settings)
left.invert_yaxis()

for name, (color, marker) in CLASS_STYLES.items():
    known = [(int(row["scored_at"]), float(row[name])) for row in rows if row[name]]
    right.scatter(*zip(*known, strict=True), 50, color, marker=marker, label=name, zorder=3)
right.set(title="IoU of the classes", xlabel="iteration scored", ylabel="percent", ylim=(0, 100))
for axes, columns in ((left, 2), (right, 3)):
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns, frameon=False)

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "images"
figure.savefig(folder / "real_sweep.png", dpi=100, bbox_inches="tight", facecolor="white")
