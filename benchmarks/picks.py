"""What USL-T's 40 picks cost and are worth beside those of rules that train nothing.

    python benchmarks/picks.py digits

For each seed trains a selector of USL-T and lets it choose. Then compares it with the other
selectors: by a linear probe on the features of the encoder, and of each trained selector, in which
every rival chooses anew, and by fine-tuning and FixMatch. Prints the commands it runs, the seconds
of training, and mean and standard deviation over the seeds. The encoder and the neighbours must be
there (docs/stages/index.md, "From images to accuracy"). Run again after a stop, it goes on.

The default seeds are the study's of trainings, fixed before a run with any of them.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from usl.ranking import summarize

ROOT = Path(__file__).resolve().parents[1]
RIVALS = "[random, kmeans-centres, maxherding, usl, tightest]"


def run(stage: str, script: str, config: str, options: dict[str, object]) -> Path:
    """Run a script from its folder, and say how; its RUN_DIR. An error ends the benchmark."""
    words = [script, "--cfg", f"configs/{config}.yaml", "--opts"]
    for key, value in options.items():
        words += [key, str(value)]
    print(f"\n$ cd {stage} && python {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT / stage, check=True)
    return ROOT / stage / "saved" / str(options["RUN_NAME"])


def compare(dataset: str, name: str, seeds: list[int], options: dict[str, object]) -> Path:
    """Compare the selectors, USL-T's lists among them; the RUN_DIR."""
    listed = [f"saved/{dataset}_usl-t_seed{{seed}}/selected_indices_40_0.npy"]
    shared = {
        "RUN_NAME": name,
        "RECOMPUTE_ALL": False,
        "RECOMPUTE_NUM_DEP": False,
        "USL.SEEDS": seeds,
        "COMPARE.BUDGETS": [40],
        "COMPARE.SELECTORS": RIVALS,
        "COMPARE.LISTS": listed,
        "COMPARE.TRAIN.SELECTORS": RIVALS,
        "COMPARE.TRAIN.SEEDS": seeds,
    }
    return run("selective_labeling", "compare.py", f"study/{dataset}", shared | options)


def main() -> None:
    """Print what training costs, and four tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=["digits", "fashion-mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303])
    given = parser.parse_args()
    dataset, seeds = given.dataset, given.seeds

    own, seconds = [], []
    for seed in seeds:
        trained = run(
            "usl-t_pretraining",
            "usl-t-cifar-pretrain.py",
            f"{dataset}_usl-t_pretrain",
            {"RUN_NAME": f"{dataset}_seed{seed}", "SEED": seed},
        )
        timings = json.loads((trained / "run.json").read_text())["timings"]
        seconds.append(f"{sum(timings.values()):.0f}")
        encoder = {"MODEL.PRETRAIN_PATH": trained / "checkpoint.pth"}
        run(
            "selective_labeling",
            "usl-t-cifar.py",
            f"{dataset}_usl-t",
            {"RUN_NAME": f"{dataset}_usl-t_seed{seed}", **encoder},
        )
        alone = {"COMPARE.TRAIN.BUDGETS": [], **encoder}
        folder = compare(dataset, f"{dataset}_picks_seed{seed}", [seed], alone)
        own.append(pd.read_csv(folder / "results.csv"))
    shared = compare(dataset, f"{dataset}_picks", seeds, {"COMPARE.TRAIN.BUDGETS": [40]})

    print(f"\nseconds of training a selector, in this run: {', '.join(seconds)}")
    for title, results in (
        ("linear probe, features of the encoder", pd.read_csv(shared / "results.csv")),
        ("linear probe, features of each trained selector", pd.concat(own)),
    ):
        print(f"\n{title}\n{summarize(results).to_string()}")
    for training, results in pd.read_csv(shared / "trainings.csv").groupby("training", sort=False):
        print(f"\n{training}\n{summarize(results).to_string()}")


if __name__ == "__main__":
    main()
