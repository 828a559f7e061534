"""The experiments of lipreg.theory and their settings, each some minutes on two CPU cores.

python experiments/theory.py --config=experiments/configs/theory.py:covering --out=runs/theory
"""

from ml_collections import ConfigDict

from lipreg.runs.config import Config

NETWORK = {"dir": "", "widths": (128,), "batch_size": 64, "learning_rate": 0.1}

# Tuples are sample sizes n; `repeats` samples are drawn at each. `reference` is the number of
# points that stand for a manifold where a supremum over it is taken.
SETTINGS = {
    "covering": {"sizes": (100, 200, 400, 800, 1600, 3200), "reference": 100_000},
    "clean": {
        "sizes": (50, 100, 200, 400, 800, 1600),
        "reference": 10_000,
        "network_sizes": (25, 100, 400),
        "steps": 2000,  # of the network's training
        "lam": 0.005,
    },
    "discrepancy": {"sizes": (100, 400, 1600, 6400, 25600, 102400), "repeats": 20, "L": 1.0},
    # L0 is less than Lip(u0), 2.51: the limit is not u0 itself.
    "noisy": {
        "sizes": (25, 50, 100, 200, 400, 800),
        "reference": 1000,
        "lam": 0.01,
        "L0": 1.0,
        "noise": 0.2,  # standard deviation
        "flips": 0.1,  # probability
        "limit": 400,  # points of the limit's program
    },
    "off_manifold": {"sizes": (50, 100, 200, 400, 800, 1600), "reference": 10_000},
    # Percentages of the labels in place of n; `dir` is a folder of prepared TFDS data sets.
    "random_labels": {
        "data": ("digits",),
        "examples": 500,
        "percents": tuple(range(0, 101, 10)),
        "repeats": 2,
        "epochs": 200,
        "lam": 3.0,
    }
    | NETWORK,
    "label_correction": {
        "data": "digits",
        "examples": 5000,  # at most
        "percents": (10, 20, 30, 40),
        "epochs": 100,
        # Each method's strengths, of which the best on clean validation images is taken.
        "weight_decays": (1e-3, 3e-3, 1e-2, 3e-2),
        "smoothings": (0.3, 0.5, 0.7, 0.9),
        "lams": (0.3, 1.0, 3.0, 10.0),
    }
    | NETWORK,
}


def get_config(name: str = "covering") -> Config:
    if name not in SETTINGS:
        raise ValueError(f"No experiment {name!r}; choose one of {', '.join(SETTINGS)}.")
    return ConfigDict({"name": name, "seed": 0, "repeats": 5} | SETTINGS[name])
