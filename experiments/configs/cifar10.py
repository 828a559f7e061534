"""CIFAR-10: the papers' ResNeXt34 (2x32); `ROW,2x8`, a quarter as wide; `ROW,cnn`, a small network.

python experiments/train.py --config=experiments/configs/cifar10.py:j2_lip_tanh --workdir=runs/c
"""

from lipreg.runs.config import Config, base_config

# The authors' --J1 0.01, --J2 0.01 are Euclidean lengths, N = 3072 pixels; their --lip 0.1 weighs
# the gradient of the mean over a batch of 128.
STRENGTHS = {
    "j0": {},
    "j1": {"eps": 0.01 / 3072**0.5},
    "j2": {"eps": 0.01},
    "j2_lip": {"eps": 0.01, "lam": 0.1 / 128},
    "tikhonov": {"lam": 0.1},
    "grad_lp": {"lam": 0.1},
    # l_inf radii and the papers' weights.
    **{row: {"eps": 8 / 255} for row in ("pgd_at", "fgsm_rs", "n_fgsm", "free_at")},
    "trades": {"eps": 8 / 255, "beta": 6.0},
    "mart": {"eps": 8 / 255, "beta": 5.0},
    "grad_align": {"eps": 8 / 255, "lam": 0.2},
    "elle": {"eps": 8 / 255, "lam": 5000.0},
    "cure": {"eps": 1.5 / 3072**0.5, "lam": 4.0},  # h is a Euclidean length
    "llr": {"eps": 8 / 255, "lam": 4.0, "mu": 3.0},
    "jacobian": {"lam": 0.01},
    "lip_excess": {"lam": 0.1, "L0": 0.36},  # of the training images, as lossy JPEG copies
}
CNN_STRENGTHS = STRENGTHS | {
    "j1": {"eps": 0.1 / 3072**0.5},
    "j2": {"eps": 0.1},
    "j2_lip": {"eps": 0.1, "lam": 0.003},
}
# Two epochs at the highest rate of the comparisons, and the radii that those chose by validation
# (results/compare): the table's own.
NARROW_STRENGTHS = STRENGTHS | {
    "j1": {"eps": 2 / 255},
    "j2": {"eps": 0.25},
    "j2_lip": {"eps": 0.25, "lam": 0.003},
}


def get_config(row: str = "j2_lip_tanh") -> Config:
    row, _, model = row.partition(",")
    strengths = {"": STRENGTHS, "cnn": CNN_STRENGTHS, "2x8": NARROW_STRENGTHS}
    if model not in strengths:
        raise ValueError(
            f"No model {model!r} after the row; choose cnn, 2x8, or nothing for ResNeXt34 (2x32)."
        )
    config = base_config(row, strengths[model])
    config.data.update({"name": "cifar10", "flip": True, "pad": 4})
    config.train.update({"epochs": 200, "batch_size": 128, "learning_rate": 0.1})
    config.train.update({"schedule": "papers", "weight_decay": 1e-3})
    config.evaluation.l2.update({"largest": 2.0, "table": 0.1})
    config.evaluation.linf.update({"largest": 0.25, "table": 1 / 16})
    if model:  # for two CPU cores
        config.train.update({"epochs": 6, "schedule": "cosine", "learning_rate": 0.05})
        config.train.weight_decay = 5e-4
    if model == "cnn":
        config.model.name = "CNN"
        config.model.settings.update({"channels": (32, 64, 128), "batch_norm": True})
    else:
        config.model.name = f"ResNeXt34_{model or '2x32'}"
        config.model.settings.remat = False
    if model == "2x8":  # radii that are small enough for so few epochs
        config.train.update({"epochs": 2, "schedule": "cyclic", "learning_rate": 0.2})
        config.report.pgd.eps = 0.25
        config.evaluation.batch_size = 64  # of survivors of AutoAttack, in quarters
        config.evaluation.l2.table, config.evaluation.linf.table = 0.25, 2 / 255
    return config
