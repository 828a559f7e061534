"""CIFAR-100: as CIFAR-10, the papers' ResNeXt34 (2x32), or `ROW,cnn` for two CPU cores.

python experiments/train.py --config=experiments/configs/cifar100.py:j2_lip --workdir=runs/c
"""

from configs import cifar10
from lipreg.runs.config import Config


def get_config(row: str = "j2_lip_tanh") -> Config:
    config = cifar10.get_config(row)
    config.data.name = "cifar100"
    return config
