"""What each selector's 40 picks are worth: the tables of docs/results.md, by the README's commands.

    python benchmarks/picks.py digits

For each seed trains a selector of USL-T and lets it choose. A linear probe then compares all
selectors, on the features of the encoder and on those of each trained selector, which every rival
gets too; and the networks of the last two stages are trained on the lists. Prints mean and standard
deviation over the seeds. The encoder and the neighbours must be there (docs/stages/index.md,
"From images to accuracy"). Run again after a stop, it takes up trained selectors.

The default seeds were fixed before a run with any of them, no setting was chosen on them, and both
data sets get the same ones.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from usl.ranking import summarize

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 40
CHOOSE, LEARN = "selective_labeling", "usl-t_pretraining"
# Stage, and what is asked of it beyond its config for picks of USL.
TRAININGS = {
    "fine-tuning": ("semisup-simclrv2-cld/fine_tune.py", "FINETUNE", ""),
    "labels alone": ("semisup-fixmatch-cifar/train.py", "FIXMATCH", "FIXMATCH.LAMBDA_U 0"),
    "FixMatch": ("semisup-fixmatch-cifar/train.py", "FIXMATCH", ""),
}


def run(script: str, config: str, options: str) -> Path:
    """Run a script from its folder, and say how; its RUN_DIR. An error ends the benchmark."""
    stage, name = script.split("/")
    call = f"{name} --cfg configs/{config}.yaml --opts {options}"
    print(f"\n$ cd {stage} && python {call}", flush=True)
    words = shlex.split(call)
    subprocess.run([sys.executable, *words], cwd=ROOT / stage, check=True)
    return ROOT / stage / "saved" / words[words.index("RUN_NAME") + 1]


def probe(dataset: str, name: str, seeds: list[int], options: str = "") -> Path:
    """Compare the selectors, USL-T's list among them; the RUN_DIR."""
    listed = f"['saved/{dataset}_usl-t_seed{{seed}}/selected_indices_{BUDGET}_0.npy']"
    options += f' COMPARE.BUDGETS "[{BUDGET}]" USL.SEEDS "{seeds}" COMPARE.LISTS "{listed}"'
    config = f"{dataset}_compare"
    return run(f"{CHOOSE}/compare.py", config, f"RUN_NAME {name} {options.strip()}")


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=["digits", "fashion-mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15, 16])
    parser.add_argument(
        "--train-on",
        nargs="*",
        default=["random", "k-means-centres", "USL", "listed-usl-t"],
        metavar="SELECTOR",
        help="selectors whose lists the last two stages train on; none: probes only",
    )
    given = parser.parse_args()
    dataset, seeds = given.dataset, given.seeds

    own = []
    for seed in seeds:
        name = f"{dataset}_seed{seed}"
        trained = run(
            f"{LEARN}/usl-t-cifar-pretrain.py",
            f"{dataset}_usl-t_pretrain",
            f"RUN_NAME {name} SEED {seed}",
        )
        encoder = f"MODEL.PRETRAIN_PATH {shlex.quote(str(trained / 'checkpoint.pth'))}"
        chosen = f"RUN_NAME {dataset}_usl-t_seed{seed} {encoder}"
        run(f"{CHOOSE}/usl-t-cifar.py", f"{dataset}_usl-t", chosen)
        own.append(probe(dataset, f"{dataset}_selectors_seed{seed}", [seed], encoder))
    shared = probe(dataset, f"{dataset}_selectors", seeds)

    accuracies = []
    for selector in given.train_on:
        lists = shared / "lists" / str(BUDGET) / f"{dataset}_{selector}_seed{{seed}}.csv"
        for method, (script, section, extra) in TRAININGS.items():
            name = f"RUN_NAME {dataset}_{selector}_{method.replace(' ', '-')}"
            options = f'{name} {section}.SEEDS "{seeds}" {extra}'
            options += f" {section}.LABELED_INDICES_PATH {shlex.quote(str(lists))}"
            folder = run(script, f"{dataset}_usl_{section.lower()}", options)
            results = pd.read_csv(folder / "results.csv")
            accuracies.append(results.assign(budget=method, selector=selector))

    print("\nlinear probe, features of the encoder")
    print(summarize(pd.read_csv(shared / "results.csv")).to_string())
    print("\nlinear probe, features of each trained selector")
    print(summarize(pd.concat([pd.read_csv(one / "results.csv") for one in own])).to_string())
    if accuracies:
        print("\ntrained on the picks")
        print(summarize(pd.concat(accuracies)).to_string())


if __name__ == "__main__":
    main()
