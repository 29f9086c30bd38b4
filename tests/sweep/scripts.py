"""Stand-ins for the scripts of a run: they need no data and no torch, and obey the same signals.

One is started as train_base.py, train.py or test.py. The file `fault` in the current folder makes
a script whose name and run it holds fail, hang, or be killed.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.environ["SWEEP_TEST_ROOT"])
from util.config import load_config, save_config, to_dict
from util.evaluate.records import write_records
from util.runtime.stop import STOPPED, Stop

SCORES = {"baseline": 50.0, "no_game": 53.0}  # of seed 1; each next seed has one more

IMAGES = 20  # queries of the test


def rows(miou: float, shot: int) -> list[dict]:
    """Return episodes of one class with this mIoU in percent; it varies with the query."""
    basic = {"seed": 321, "control": "", "class_id": 1, "class_name": "cat", "height": 100,
             "width": 200, "object_pixels": 9000, "presence": 0.5}  # fmt: skip
    basic |= {f"{kind}_u": 10000 for kind in ("final", "meta")}
    basic |= {f"{kind}_bg_{area}": 10000 for kind in ("final", "meta") for area in "iu"}
    varied = [{f"{kind}_i": int(100 * miou) + (-1) ** n * int(miou) for kind in ("final", "meta")}
              for n in range(IMAGES)]  # fmt: skip
    return [
        {**basic, **counts, "number": n, "query": f"q{n}", "supports": ["s"] * shot}
        for n, counts in enumerate(varied)
    ]


def main() -> None:
    name, words = Path(sys.argv[0]).name, sys.argv[5:]
    assert sys.argv[1::2][:2] == ["--config", "--gpus"]
    cfg = load_config(sys.argv[2], words)
    run, target = Path(cfg.Train.save_path), Path(cfg.Method.pre_weight)
    with Stop() as stop:
        print(f"{name} begins with {os.environ['OMP_NUM_THREADS']} threads", flush=True)
        fault = os.path.exists("fault") and Path("fault").read_text().split()
        if fault and fault[0] == name and fault[1] in (target.name, "/".join(run.parts[-3:])):
            if fault[2] == "fails":
                print("error: this one fails\n", flush=True)
                sys.exit(2)
            if fault[2] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            Path("waits").write_text(str(os.getpid()))
            while not stop.requested:
                time.sleep(0.01)
            if name == "test.py":
                sys.exit(143)
            run.mkdir(parents=True, exist_ok=True)
            (run / "last.pth").write_text("half")
            print(f"{STOPPED} 3; resume with:\npython {name}")
            return
    if name == "train_base.py":
        target.parent.mkdir(exist_ok=True)
        target.write_text("base")
    elif name == "train.py":
        assert target.is_file()
        run.mkdir(parents=True, exist_ok=True)
        save_config(cfg, run / "config.yaml")
        (run / "best.pth").write_text("done")
    else:
        miou = SCORES[run.parts[-2]] + cfg.Train.seed - 1
        score = {"miou": miou, "fb_iou": 70.0}
        digest = hashlib.sha256((run / "best.pth").read_bytes()).hexdigest()
        means = {f"{kind} mIoU": {"mean": miou} for kind in ("final", "meta")}
        result = {"checkpoint": str(run / "best.pth"), "checkpoint_sha256": digest}
        result |= {"config": to_dict(cfg), "summary": means}
        result["seeds"] = {"321": {"final": score, "meta": score, "episodes": IMAGES}}
        result["environment"] = {"lists": {"val": 1234}}
        write_records(run / "episodes.parquet", rows(miou, cfg.Data.shot), {})
        (run / "result.json").write_text(json.dumps(result))


main()
