"""Seeds share a row; runs that were measured differently are refused, with the fields."""

import json
import re
import shutil
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure

from lipreg import curves, files, reports
from lipreg.reports import plots, tables
from lipreg.runs import storage
from lipreg.runs.config import base_config

STRENGTHS = {"j0": {}, "j2": {"eps": 0.1}}
DISTANCES = np.array([0.0, 0.05, 0.2, np.inf])


def a_run(
    folder, row="j0", *, distances=DISTANCES, split="test", record=None, robust=None, **changes
):
    """The files of a run that was evaluated on four images; `robust` is by protocol."""
    config = base_config(row, STRENGTHS)
    config.evaluation.examples = len(distances)
    config.update_from_flattened_dict(changes)
    storage.claim(folder, config.to_dict(), steps=6)
    add(folder, config, distances, split=split)
    for protocol, changed in (robust or {}).items():
        found = an_attack(protocol) | changed
        add(folder, config, distances, protocol, split=split, record=found)
    return folder


def add(folder, config, distances=DISTANCES, protocol="pgd", *, split="test", record=None):
    """One evaluation of a run."""
    settings = config.evaluation
    names = ["l2", "linf", *(["steps", "restarts", "radii"] if protocol == "pgd" else [])]
    found = {"l2": distances, "linf": distances / 2}
    whole = {
        "row": curves.summary(found["l2"], found["linf"]),
        "protocol": protocol,
        "data": config.data.name,
        "split": split,
        "n": len(distances),
        "seed": 0,
        "step": 6,
        "steps": 6,
        "settings": {name: settings.to_dict()[name] for name in names},
        "norms": {"l2": {}, "linf": {}},
    } | (record or {})
    place = folder / "evaluations" / f"{protocol}_{split}_{len(distances)}"
    place.mkdir(parents=True)
    files.write_arrays(place / "distances.npz", **found)
    files.write_json(place / "evaluation.json", whole)
    return place


def an_attack(protocol="autoattack", error=0.25):
    errors = {"0.5": {"clean": 0.1, "apgd-ce": 0.2, "square": error}}
    checks = [{"name": "steps", "status": "pass"}, {"name": "scores", "status": "warn"}]
    return {"norms": {norm: {"errors": errors, "checks": checks} for norm in ("l2", "linf")}}


def cells(text):
    """The table's cells by the names of row and column."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_seeds_are_one_row_of_mean_and_deviation_and_one_curve(tmp_path):
    seeds = [
        a_run(tmp_path / "0", seed=0),
        a_run(tmp_path / "1", seed=1, distances=np.array([0.0, 0.0, 0.0, np.inf])),
        a_run(tmp_path / "2", "j2"),
    ]
    text, written = reports.table(seeds, tmp_path / "out")
    assert cells(text)["J0"]["% clean error"] == "50 ± 35"
    assert cells(text)["J2"]["% clean error"] == "25"
    assert "1 or 2 seeds a row, mean ± standard deviation" in text
    assert {file.suffix for file in written} == {".md", ".csv", ".png", ".svg"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        file.name for file in written
    )


def test_further_radii_are_columns_and_lines_and_the_text_says_where_rows_differ_most(tmp_path):
    far = np.array([0.0, 0.5, 0.5, np.inf])
    pair = [a_run(tmp_path / "0"), a_run(tmp_path / "1", "j2", distances=far)]
    with mock.patch.object(plots, "error_curves", wraps=plots.error_curves) as drawn:
        text, _ = reports.table(pair, tmp_path / "out", radii={"l2": (0.05, 0.1)})
    assert cells(text)["J0"]["% error at l2 0.05"] == "50"
    assert cells(text)["J2"]["% error at l2 0.05"] == "25"
    assert len(cells(text)["J0"]) == 6  # 0.1 is there already
    assert [call.kwargs["marks"] for call in drawn.call_args_list] == [[0.05, 0.1], [0.0625]]
    assert "The rows differ most at l2 0.2, linf 0.1." in text
    assert not tables._told_apart({"l2": {"J0": DISTANCES[None], "J2": DISTANCES[None]}})
    for radii, said in (
        ({"l1": (1.0,)}, "radii in l1; there are distances in l2, linf"),
        ({"l2": (2.5,)}, "radius 2.5 in l2; choose 0 to 2"),
        ({"l2": ("far",)}, "radius far in l2; choose 0 to 2"),
    ):
        with pytest.raises(ValueError, match=said):
            reports.table(pair, tmp_path / "out", radii=radii)


def test_a_radius_that_is_asked_for_counts_what_was_broken_at_a_smaller_one(tmp_path):
    distances = np.array([0.0, 0.7, 0.7, np.inf])
    run = a_run(tmp_path / "0", distances=distances)
    place = run / "evaluations/pgd_test_4"
    broken = {f"broken_{norm}_0.5": np.array([1, 1, 0, 1], bool) for norm in ("l2", "linf")}
    arrays = {"l2": distances, "linf": distances / 2}
    files.write_arrays(place / "distances.npz", **arrays | broken)
    row = cells(reports.table([run], tmp_path / "out", radii={"l2": (0.4, 0.5, 0.6, 0.8)})[0])["J0"]
    found = [row[f"% error at l2 {eps}"] for eps in (0.4, 0.5, 0.6, 0.8)]
    assert found == ["25", "75", "75", "100"]


def test_configs_that_share_label_and_folders_name_are_rows_of_their_own(tmp_path):
    found = [
        a_run(tmp_path / place / "lam=0", "j2", distances=distances, **{"train.epochs": epochs})
        for epochs, (place, distances) in enumerate(
            (("a", DISTANCES), ("b", np.zeros(4)), ("c", np.full(4, np.inf))), 1
        )
    ]
    found.append(a_run(tmp_path / "d"))
    rows = cells(reports.table(found, tmp_path / "out")[0])
    assert list(rows) == ["J2 (a/lam=0)", "J2 (b/lam=0)", "J2 (c/lam=0)", "J0"]
    assert [row["% clean error"] for row in rows.values()] == ["25", "100", "0", "25"]


def test_a_run_counts_once(tmp_path):
    one, two = (a_run(tmp_path / name) for name in "ab")
    for other in (one, tmp_path / "a/../a", two):
        with pytest.raises(ValueError, match=r"a and .* are of one config and seed: name one"):
            reports.table([one, other], tmp_path / "out")


@pytest.mark.parametrize(
    ("a", "b", "fields"),
    [
        ({}, {"evaluation.steps": 40}, "evaluation.steps is 20 and 40"),
        ({}, {"evaluation.l2.largest": 9.0}, "evaluation.l2.largest is 2.0 and 9.0"),
        ({}, {"data.name": "mnist"}, "data.name is 'digits' and 'mnist'"),
        ({}, {"split": "validation"}, "split is 'test' and 'validation'"),
        (
            {"split": "validation"},
            {"split": "validation", "data.seed": 3},
            "split is 'validation (0.1 of the images, by seed 0)' and 'validation (0.1 of the",
        ),
        ({"data.name": "folder"}, {"data.name": "folder", "data.dir": "x"}, "data.dir is '' and"),
        ({"data.name": "a.npz"}, {"data.name": "a.npz", "data.dir": "x"}, "data.dir is '' and 'x'"),
        ({}, {"data.bounds": (0.0, 2.0)}, "data.bounds is (0.0, 1.0) and (0.0, 2.0)"),
        ({"distances": np.zeros(2)}, {}, "n is 2 and 4"),
        ({"robust": {"full": {}}}, {"robust": {"autoattack": {}}}, "protocol is 'full' and 'auto"),
    ],
)
def test_what_was_measured_otherwise_is_refused_naming_runs_and_field(a, b, fields, tmp_path):
    pair = a_run(tmp_path / "a", **a), a_run(tmp_path / "b", "j2", **b)
    message = rf"a and \S*b do not go into one table: {re.escape(fields)}"
    with pytest.raises(ValueError, match=message) as caught:
        reports.table(pair, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_without_the_protocols_evaluation_is_refused_with_those_it_has(tmp_path):
    a, b = a_run(tmp_path / "a"), a_run(tmp_path / "b", "j2")
    (b / "evaluations" / "pgd_test_4").rename(b / "evaluations" / "deck_test_4")
    for given, had in (({}, "deck_test_4"), ({"norms": ["l1"]}, ""), ({"split": "validation"}, "")):
        with pytest.raises(
            ValueError, match=rf"has not been evaluated by pgd in .*{had}.*: run py"
        ):
            reports.table([a, b], tmp_path / "out", **given)
    with pytest.raises(ValueError, match=r"--attack=MODULE:mine --attack=ddn --norms=l1\.$"):
        reports.table([a, b], tmp_path / "out", protocol="pgd+mine+ddn", norms=["l1"])
    for given, flags in (
        ({"split": "validation", "examples": 3}, r"--split=validation --examples=3\.$"),
        ({"split": "test", "examples": 9}, r"--run=\S*a --examples=9\.$"),
    ):
        with pytest.raises(ValueError, match=flags):
            reports.table([a, b], tmp_path / "out", **given)
    shutil.rmtree(b / "evaluations")
    files.write_json(b / "evaluation.json", {})
    said = r"b has .*, it has that of an earlier version: run python \S*evaluate.py --run=\S*b\.$"
    with pytest.raises(ValueError, match=said):
        reports.table([a, b], tmp_path / "out")


def test_of_several_evaluations_the_one_that_all_runs_have_or_that_is_named_is_taken(tmp_path):
    runs_ = [a_run(tmp_path / "a"), a_run(tmp_path / "b", "j2")]
    config = storage.read_config(runs_[0])
    add(runs_[0], config, np.zeros(2), split="validation")
    assert "4 test images" in reports.table(runs_, tmp_path / "out")[0]
    add(runs_[1], config, np.zeros(2), split="validation")
    with pytest.raises(ValueError, match="several evaluations by pgd: 4 test, 2 validation images"):
        reports.table(runs_, tmp_path / "out")
    for given in ({"split": "validation"}, {"examples": 2}):
        assert "2 validation images" in reports.table(runs_, tmp_path / "out", **given)[0]


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"row": {}}'])
def test_a_foreign_record_is_no_evaluation(text, tmp_path):
    run = a_run(tmp_path / "a")
    (run / "evaluations" / "pgd_test_4" / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json is not a run's evaluation: run py"):
        reports.table([run], tmp_path / "out")


@pytest.mark.parametrize("l2", [None, DISTANCES[:, None], DISTANCES + 1, np.array(["a", "b"])])
def test_foreign_distances_do_not_belong_to_the_record(l2, tmp_path):
    run = a_run(tmp_path / "a")
    arrays = {"linf": DISTANCES / 2} | ({} if l2 is None else {"l2": l2})
    files.write_arrays(run / "evaluations" / "pgd_test_4" / "distances.npz", **arrays)
    with pytest.raises(ValueError, match=r"evaluation\.json and .*npz are of two evaluations"):
        reports.table([run], tmp_path / "out")


def test_a_protocol_makes_a_table_of_its_own(tmp_path):
    runs_ = [a_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for run in runs_:
        add(run, storage.read_config(run), np.full(4, 0.05), "deck")
    text, written = reports.table(runs_, tmp_path / "out", protocol="deck")
    assert cells(text)["J0"]["l2 median"] == "0.05 ± 0"
    assert "4 test images; protocol deck; 2 seeds" in text
    assert "curves_linf.svg" in {path.name for path in written}


def test_autoattack_of_other_images_is_left_out_and_of_other_weights_refused(tmp_path):
    runs_ = [a_run(tmp_path / "a", robust={"autoattack": {}}), a_run(tmp_path / "b", "j2")]
    place = add(runs_[1], storage.read_config(runs_[1]), np.zeros(2), "autoattack")
    assert "AutoAttack" not in reports.table(runs_, tmp_path / "out")[0]
    shutil.rmtree(place)
    config = storage.read_config(runs_[1])
    add(runs_[1], config, protocol="autoattack", record=an_attack() | {"step": 3})
    said = r"b was evaluated at step 3 of 6: .* --run=\S*b --protocol=autoattack --examples=4\."
    with pytest.raises(ValueError, match=said):
        reports.table(runs_, tmp_path / "out")


def test_autoattack_at_other_radii_is_refused(tmp_path):
    other = json.loads(json.dumps(an_attack()).replace('"0.5"', '"0.4"'))
    runs_ = [
        a_run(tmp_path / "a", robust={"autoattack": {}}),
        a_run(tmp_path / "b", "j2", robust={"autoattack": other}),
    ]
    with pytest.raises(ValueError, match=re.escape("radii.l2 is ['0.5'] and ['0.4']")):
        reports.table(runs_, tmp_path / "out")


def test_errors_under_autoattack_become_columns_when_every_run_has_them(tmp_path):
    found = [a_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    found.append(a_run(tmp_path / "2", "j2"))
    config = storage.read_config(found[0])
    add(found[0], config, protocol="full", record=an_attack("full", error=0.9))
    for place, run in enumerate(found):
        text, _ = reports.table(found, tmp_path / "out")
        assert "AutoAttack" not in text
        add(run, config, protocol="autoattack", record=an_attack(error=0.25 + 0.05 * place))
    rows = cells(reports.table(found, tmp_path / "out")[0])
    column = "% AutoAttack error at l2 0.5"
    assert [row[column] for row in rows.values()] == ["27.5 ± 3.5", "35"]
    assert rows["J2"]["masking flags"] == "2"


def test_a_check_that_one_run_alone_was_asked_is_no_flag_of_the_table(tmp_path):
    more = json.loads(json.dumps(an_attack()))
    for numbers in more["norms"].values():
        numbers["checks"].append({"name": "transfer", "status": "fail"})
    found = [
        a_run(tmp_path / "a", robust={"autoattack": {}}),
        a_run(tmp_path / "b", "j2", robust={"autoattack": more}),
    ]
    rows = cells(reports.table(found, tmp_path / "out")[0])
    assert [row["masking flags"] for row in rows.values()] == ["2", "2"]


def test_a_certified_error_becomes_a_column_and_a_band_when_every_run_has_it(tmp_path, monkeypatch):
    """The larger of two proofs counts, an estimate never; of other images or weights neither."""
    drawn = {}

    def remember(distances, *, norm_name, radii=None, **_):
        drawn[norm_name] = radii
        return Figure()

    monkeypatch.setattr(plots, "error_curves", remember)
    found = [a_run(tmp_path / "0"), a_run(tmp_path / "1", "j2")]
    kinds = {"one": "certified", "other": "certified", "guess": "estimate"}
    radii = {"one": [0.0, 0.05, 0.05, 0.6], "other": [0.0, 0.2, 0, 0], "guess": [9.0] * 4}
    column = "% certified error at l2 0.1"
    for place, record in enumerate(({"n": 4, "step": 5}, {"n": 3, "step": 6}, {"n": 4, "step": 6})):
        run = found[min(place, 1)]
        files.write_arrays(run / "certificates.npz", **radii)
        files.write_json(run / "certificates.json", {"split": "test", "kinds": kinds} | record)
        assert "certified" not in reports.table(found, tmp_path / "out")[0]
    shutil.copy(found[1] / "certificates.json", found[0])
    rows = cells(reports.table(found, tmp_path / "out")[0])
    assert [row[column] for row in rows.values()] == ["50", "50"]
    np.testing.assert_array_equal(drawn["l2"]["J2"], [0, 0.2, 0.05, 0.6])
    assert not drawn["linf"]
    more = cells(reports.table(found, tmp_path / "out", radii={"l2": [0.02]})[0])["J2"]
    assert [more[column], more["% certified error at l2 0.02"]] == ["50", "25"]
    close = cells(reports.table(found, tmp_path / "out", radii={"l2": [0.02, 0.02001]})[0])["J2"]
    assert {f"% certified error at l2 {eps}" for eps in ("0.02", "0.02001")} <= close.keys()


def test_radii_that_are_close_have_a_column_each(tmp_path):
    errors = {"0.0314": {"square": 0.5}, "0.0313725": {"square": 0.25}}
    norms = {norm: {"errors": errors, "checks": []} for norm in ("l2", "linf")}
    run = a_run(tmp_path / "run", robust={"full": {"norms": norms}})
    row = cells(reports.table([run], tmp_path / "out")[0])["J0"]
    assert row["% AutoAttack error at linf 0.0314"] == "50"
    assert row["% AutoAttack error at linf 0.0313725"] == "25"


def test_an_evaluation_is_believed_if_its_files_belong_together_and_to_the_config(tmp_path):
    run = a_run(tmp_path / "run")
    assert reports.evaluated(run)
    for other in ({"seed": 1}, {"split": "validation"}, {"protocol": "deck"}, {"norms": ["l1"]}):
        assert not reports.evaluated(run, **other)
    path = run / "evaluations" / "pgd_test_4" / "evaluation.json"
    record = files.read(path)

    files.write_json(path, record | {"step": 3})
    assert not reports.evaluated(run)
    files.write_json(path, {"row": {}})
    assert not reports.evaluated(run)
    path.write_text("")
    assert not reports.evaluated(run)

    files.write_json(path, record)
    files.write_arrays(path.with_name("distances.npz"), l2=np.zeros(4), linf=np.zeros(4))
    assert not reports.evaluated(run)
    with pytest.raises(ValueError, match=r"distances\.npz are of two evaluations: run python"):
        reports.table([run], tmp_path / "out")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.md"
    files.write(path, "± ε\n")
    assert path.read_bytes() == "± ε\n".encode()

    def full():
        with files.replacing(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        full()
    assert [file.name for file in tmp_path.iterdir()] == ["table.md"]
    assert path.read_text(encoding="utf-8") == "± ε\n"
    files.write_arrays(tmp_path / "a.npz", x=np.arange(3))
    np.testing.assert_array_equal(files.read(tmp_path / "a.npz")["x"], np.arange(3))
