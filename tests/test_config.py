"""What a config may contain; fields that would not be read or have no effect are refused."""

import pytest

from lipreg import datasets, objectives
from lipreg.runs.checks import check
from lipreg.runs.config import base_config, complete, differing, drop_settings, no_field


def config(row="j2_lip", **changes):
    takes = objectives.strengths(getattr(objectives, row))
    found = base_config(row, {row: dict.fromkeys(takes, 0.1)})
    found.train.replay = 2 if row == "free_at" else 1
    found.update_from_flattened_dict(changes)
    return found


@pytest.mark.parametrize("row", objectives.__all__)
def test_any_strength_may_be_none_at_all_but_not_less(row):
    for name in objectives.strengths(getattr(objectives, row)):
        check(config(row, **{f"strengths.{name}": 0.0}))
        with pytest.raises(
            ValueError, match=f"config.strengths.{name} = -1.0; it must be 0 or more"
        ):
            check(config(row, **{f"strengths.{name}": -1.0}))


def test_a_strength_of_an_objective_to_come_may_be_none_at_all(monkeypatch):
    def trades(loss, x, y, *, beta, frozen=None):
        """A stand-in for an objective of one's own."""

    monkeypatch.setattr(objectives, "j2", trades)
    check(config("j2", **{"strengths.beta": 0.0}))


def test_a_ramp_of_nothing_is_refused():
    check(config("j2_lip", **{"train.ramp": 0.5}))
    with pytest.raises(ValueError, match=r"config.train.ramp = 0.5; j2 has no lam to grow"):
        check(config("j2", **{"train.ramp": 0.5}))


@pytest.mark.parametrize("section", ["", "train.", "data.", "evaluation.l2.", "model."])
def test_a_field_that_nothing_reads_is_refused_and_so_is_one_that_lacks(section):
    more, less = config(), config()
    place = more
    for name in filter(None, section.split(".")):
        place = place[name]
    place.warmup = 5
    with pytest.raises(ValueError, match=rf"config.{section}warmup is no field\."):
        check(more)
    del less.train.ramp
    with pytest.raises(ValueError, match=r"config.train.ramp is missing\."):
        check(less)
    check(complete(less))


@pytest.mark.parametrize("channels", [("a",), (-2,), (8, 0), (1.5,)])
def test_the_sizes_of_a_model_are_whole_numbers(channels):
    found = config()
    found.model.settings = {"channels": (8, 16)}
    check(found)
    found.model.settings.channels = channels
    with pytest.raises(ValueError, match=r"config.model.settings.channels = .*whole numbers"):
        check(found)


@pytest.mark.parametrize(
    ("name", "given", "left"),
    [
        ("MLP", (), {"dtype"}),
        ("ResNet18(stages=(1, 1))", ("train.steps",), {"dtype"}),  # its channels are others
        ("MLP", ("model.settings.channels",), {"dtype", "channels"}),
        ("MLP", ("model.settings",), {"dtype", "channels", "batch_norm"}),
        ("CNN(hidden=8)", (), {"dtype", "channels", "batch_norm"}),
        ("my_parts:Net", (), {"dtype"}),
    ],
)
def test_another_network_has_none_of_the_settings_of_the_files_own(name, given, left):
    found = config()
    found.model.settings.update({"channels": (8,), "batch_norm": False})
    found.lock().model.name = name
    drop_settings(found, "CNN", given)
    assert {*found.model.settings} == left


def test_settings_that_an_outsiders_network_would_not_get_are_refused():
    found = config(**{"model.name": "my_parts:Net(width=3)"})
    with pytest.raises(ValueError, match=r"config.model.settings.dtype: .* name, my_parts:Net\("):
        drop_settings(found, "CNN", ("model.settings.dtype",))


def test_what_to_say_of_a_name_that_is_no_field():
    fields = ("seed", "model.name", "model.settings.dtype", "train.epochs", "data.seed")
    assert no_field("trian.epoch", fields).endswith("Did you mean train.epochs?")
    assert no_field("data.seeds", fields).endswith("Did you mean data.seed?")
    assert no_field("train.lr", fields).endswith("choose one of train.epochs.")
    assert no_field("lr", fields).endswith("data.seed.")
    assert no_field("model.settings.width", fields).endswith("model.name='NAME(width=...)'.")


def test_settings_in_a_name_are_checked_as_all_others_are():
    with pytest.raises(ValueError, match=r"config.model.settings.hidden = 0; it must be greater"):
        check(config(**{"model.name": "CNN(hidden=0)"}))
    check(config(**{"model.name": "my_parts:Net(hidden=0)"}))
    twice = config(**{"model.name": "CNN(activation='gelu')"})
    check(twice)
    twice.model.activation = "silu"
    with pytest.raises(ValueError, match=r"config.model.activation = silu; the name has one"):
        check(twice)


def test_a_seed_is_one_of_those_that_differ():
    check(config(seed=2**32 - 1))
    with pytest.raises(ValueError, match=r"config.seed = 4294967296; it must be less than 2\^32"):
        check(config(seed=2**32))


def test_fields_that_differ_are_named_with_both_values():
    assert differing(config(), config(seed=3, **{"train.epochs": 2})) == {
        "seed": (0, 3),
        "train.epochs": (10, 2),
    }


STREAMED = {"data.name": "folder", "data.side": 8}
IDLE = [  # (what would not be read, what lets it be read, what is said)
    ({"data.dir": "a"}, {"data.name": "mnist"}, "data.dir = a; no folder is read for digits"),
    (
        {"data.dir": "a", "data.synthetic": "m:f"},
        {"data.synthetic": "a.npz"},
        "data.dir = a; no folder is read for digits and m:f",
    ),
    ({"data.workers": 2}, STREAMED, "data.workers = 2; only a streamed set"),
    ({"data.threads": 2}, STREAMED, "data.threads = 2; only a streamed set"),
    (
        {"data.bounds": (-1.0, 1.0), "data.side": 8, "data.name": "mnist"},
        {"data.side": 0},
        r"data.bounds = \(-1.0, 1.0\); the pixels of a streamed set are in \[0, 1\]",
    ),
    (
        {"train.per_dispatch": 4, "data.side": 8, "data.name": "mnist"},
        {"data.side": 0},
        "train.per_dispatch = 4; a streamed set is trained on a step at a time",
    ),
    (
        {"data.synthetic_share": 0.5},
        {"data.synthetic": "a.npz"},
        "data.synthetic_share = 0.5; there is no second set, config.data.synthetic",
    ),
    (
        {"train.optimizer": "adam", "train.nesterov": True},
        {"train.optimizer": "sam"},
        r"train.nesterov = True; only sgd reads it: .* into its name, adam\(",
    ),
    (
        {"train.momentum": 0.0, "train.nesterov": True},
        {"train.momentum": 0.5},
        "train.nesterov = True; config.train.momentum is 0",
    ),
    (
        {"train.ema_statistics": "averaged"},
        {"train.ema": 0.9},
        "train.ema_statistics = averaged; .*: config.train.ema is 0",
    ),
    (
        {"train.ramped": "eps"},
        {"train.ramp": 0.5},
        "train.ramped = eps; .*: config.train.ramp is 0",
    ),
]


@pytest.mark.parametrize(("idle", "other", "told"), IDLE)
def test_a_setting_that_nothing_reads_beside_the_others_is_refused(idle, other, told):
    with pytest.raises(ValueError, match=f"config.{told}") as refused:
        check(config(**idle))
    assert "\n" not in str(refused.value)
    check(config(**idle | other))


def test_a_set_that_must_be_streamed_is_told_the_field_that_does_it():
    with pytest.raises(ValueError, match=r"No data set 'folder'; .*, or set config.data.side"):
        datasets.load("folder", "train")
