"""ImageNet at 224 x 224, streamed: ResNet50, for accelerators.

python experiments/train.py --config=experiments/configs/imagenet.py:j2_lip --workdir=runs/i

For a folder of train/CLASS/*.jpg and validation/CLASS/*.jpg in place of a prepared TFDS data set
add --config.data.name=folder --config.data.dir=FOLDER.
"""

from lipreg.runs.config import Config, base_config

# Untuned: nothing was trained to choose them. N = 3 * 224^2 pixels; lam as for CIFAR, per example.
STRENGTHS = {
    "j0": {},
    "j1": {"eps": 0.5 / (3 * 224**2) ** 0.5},
    "j2": {"eps": 0.5},
    "j2_lip": {"eps": 0.5, "lam": 0.1 / 256},
}


def get_config(row: str = "j2_lip") -> Config:
    config = base_config(row, STRENGTHS)
    config.data.update({"name": "imagenet2012", "side": 224, "flip": True})
    config.data.validation = 0.01  # of the training split; `test` is the official validation split
    config.model.name = "ResNet50"
    config.model.settings.remat = False
    config.train.update({"epochs": 90, "batch_size": 256, "learning_rate": 0.1})
    config.train.update({"schedule": "cosine", "weight_decay": 1e-4})
    config.report.every_steps = 100
    config.report.pgd.eps = 0.5
    config.evaluation.batch_size = 100
    config.evaluation.l1.update({"largest": 300.0, "table": 60.0})
    config.evaluation.l2.update({"largest": 5.0, "table": 0.5})
    config.evaluation.linf.update({"largest": 16 / 255, "table": 4 / 255})
    return config
