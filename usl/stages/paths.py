"""Which settings are paths, and which texts in their place are none."""

from __future__ import annotations

import re

from usl.config.paths import PathSetting
from usl.data.bucket import URL

# Draws of as many images from each class, in the place of a list.
SLICE = re.compile(r"slice(\d+|\{seed\})")
# Rows that are not finite, in the place of a list of rows.
NOT_FINITE = "nan"
# Trainings that go on from their own checkpoint, or begin anew.
RESUMES = re.compile("auto|none")

# Lists of labelled images; the published ones are called released/NAME, wherever that stands.
LISTS = {
    key: PathSetting(words=SLICE, released="selective_labeling")
    for key in (
        "FINETUNE.LABELED_INDICES_PATH",
        "FIXMATCH.LABELED_INDICES_PATH",
        "COMPARE.LISTS",
        "USLT.LABELS_PATH",
    )
}
PATHS = {
    "SAVE_DIR": PathSetting(),
    "RUN_DIR": PathSetting(),
    "DATASET.ROOT_DIR": PathSetting(words=URL),
    "DATASET.IMAGE_LIST": PathSetting(),
    "DATASET.SUBSET": PathSetting(),
    "MODEL.PRETRAIN_PATH": PathSetting(),
    "FEATURES.PATH": PathSetting(),
    "FEATURES.EXCLUDE": PathSetting(words=re.compile(NOT_FINITE)),
    "SIMCLR.TOPK_NEIGHBORS_PATH": PathSetting(),
    "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH": PathSetting(),
    "RESUME": PathSetting(words=RESUMES),
    "USL.LABELED_INDICES_PATH": PathSetting(released="selective_labeling"),
    **LISTS,
}
