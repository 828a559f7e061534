"""SGD against Deep Relaxation on MNIST, a gradient a step: results/relaxation.sh runs all of it.

python experiments/train.py --config=experiments/configs/relaxation.py:mlp,hj --workdir=runs/r

Period, noise and scoping are those of the code of 1611.01838 for MNIST; momentum is Nesterov's.
"""

from lipreg.runs.config import Config, base_config

_PAPERS = "period=20, coupling=1e-4, growth=1e-3, temperature=1e-8"
OPTIMIZERS = {
    "sgd": "sgd",
    "entropy": f"local_entropy({_PAPERS})",
    "hj": f"local_entropy({_PAPERS}, variant='hj')",
    "heat": f"local_entropy({_PAPERS}, variant='heat')",
    "replicas": f"local_entropy({_PAPERS}, replicas=3)",
}
NETWORKS = {
    "mlp": ("MLP", {"widths": (128, 128)}),
    "lenet": ("CNN", {"channels": (6, 16), "hidden": 84}),
}


def get_config(row: str = "mlp,sgd") -> Config:
    network, _, optimizer = row.partition(",")
    if network not in NETWORKS or optimizer not in OPTIMIZERS:
        rows = f"NETWORK,OPTIMIZER of {', '.join(NETWORKS)} and {', '.join(OPTIMIZERS)}"
        raise ValueError(f"No row {row!r}; choose {rows}.")
    config = base_config("j0", {"j0": {}})
    config.model.name, settings = NETWORKS[network]
    config.model.settings.update(settings)
    config.data.name = "mnist"
    # Cheap and frequent validation: short epochs, and an attack of radius 0, which finds nothing.
    config.report.update({"logs": ("jsonl",), "examples": 6000, "checkpoint_every_epochs": 100})
    config.report.pgd.update({"eps": 0.0, "steps": 1})
    config.data.validation = 0.5
    config.train.update({"epochs": 9, "batch_size": 128, "nesterov": True, "weight_decay": 0.0})
    config.train.optimizer = OPTIMIZERS[optimizer]
    if network == "lenet":
        config.data.validation = 0.9
        config.report.examples = 1500
        config.train.update({"epochs": 5, "batch_size": 64})
    return config
