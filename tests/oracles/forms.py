"""Both forms of the regulariser, in the words of the oracle and of the library."""

FORMS = {
    "dist": ({"horizon": 1.5}, {"horizon_dist": 1.5}),
    "num": ({"form": "num", "horizon": 4}, {"horizon": "num", "horizon_num": 4}),
    "num-own": (
        {"form": "num", "horizon": 4, "exclude_own": True},
        {"horizon": "num", "horizon_num": 4, "exclude_same_cluster": True},
    ),
}
