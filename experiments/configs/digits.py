"""Digits (scikit-learn, 1,797 images of 8x8, embedded): the four rows of `make demo`.

python experiments/train.py --config=experiments/configs/digits.py:j2_lip_tanh --workdir=runs/d

`ROW,lipschitz_cnn` and `ROW,lipschitz_mlp` are networks that are 1-Lipschitz by construction, made
of the layer that `--config.model.settings.layer` names (lipreg.models.lipschitz).
"""

from lipreg.runs.config import Config, base_config

STRENGTHS = {
    "j0": {},
    "j1": {"eps": 0.1},  # l_inf radius
    "j2": {"eps": 0.4},
    "j2_lip": {"eps": 0.4, "lam": 0.01},
    "tikhonov": {"lam": 0.1},
    "grad_lp": {"lam": 0.1},
    # L0 of the training images: lipschitz.of_data.
    "lip_excess": {"lam": 0.1, "L0": 0.85},
    # l_inf radii. Weights are those of the papers where they do not depend on eps; untuned.
    **{row: {"eps": 0.1} for row in ("pgd_at", "fgsm_rs", "n_fgsm", "free_at")},
    "trades": {"eps": 0.1, "beta": 6.0},
    "mart": {"eps": 0.1, "beta": 5.0},
    "grad_align": {"eps": 0.1, "lam": 0.2},
    "elle": {"eps": 0.1, "lam": 5000.0},
    "cure": {"eps": 0.1, "lam": 4.0},
    "llr": {"eps": 0.1, "lam": 4.0, "mu": 3.0},
    "jacobian": {"lam": 0.01},
}


LIPSCHITZ = {
    "lipschitz_cnn": ("LipschitzCNN", {"channels": (16, 32), "hidden": 64, "padding": "own"}),
    "lipschitz_mlp": ("LipschitzMLP", {"widths": (128, 128)}),
}


def get_config(row: str = "j2_lip_tanh") -> Config:
    row, _, model = row.partition(",")
    if model not in ("", *LIPSCHITZ):
        known = ", ".join(LIPSCHITZ)
        raise ValueError(f"No model {model!r} after the row; choose {known}, or nothing for CNN.")
    config = base_config(row, STRENGTHS)
    config.model.name = "CNN"
    config.model.settings.update({"channels": (32, 64), "batch_norm": False})
    config.data.name = "digits"
    config.train.update({"epochs": 30, "batch_size": 64, "learning_rate": 0.05})
    config.train.schedule = "cosine"
    config.train.weight_decay = 1e-4
    config.report.pgd.eps = 0.5
    config.evaluation.examples = 360
    config.evaluation.batch_size = 360
    config.evaluation.l1.update({"largest": 15.0, "table": 2.0})
    config.evaluation.l2.update({"largest": 3.0, "table": 0.5})
    config.evaluation.linf.update({"largest": 0.5, "table": 1 / 16})
    if model:
        config.model.name, settings = LIPSCHITZ[model]
        config.model.activation = "own"  # MaxMin, or relu inside of a layer
        config.model.settings = {"dtype": "float32", "layer": "aol", **settings}
        config.train.update({"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.0})
        # Margins of sqrt(2) 0.5, which certify the table's radius.
        config.loss = "offset_cross_entropy(offset=0.7, temperature=0.1)"
    return config


def get_sweep() -> dict[str, tuple]:
    """What experiments/sweep.py tries where no axes are given: for the rows with a lam."""
    return {"strengths.lam": (0.0, 0.003, 0.01, 0.03, 0.1), "seed": (0, 1)}
