"""A name is the library's or an outsider's, and a wrong one is told in one line."""

import pytest

from lipreg import doors

OWN = {"sgd": 1, "adam": 2}


def test_a_name_of_the_librarys_is_looked_up():
    assert doors.named("optimizer", "adam", OWN) == 2


def test_an_outsiders_module_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "outsiders_parts.py").write_text("mine = 7\n")
    monkeypatch.setattr("sys.path", ["/nowhere"])
    monkeypatch.chdir(tmp_path)
    assert doors.named("objective", "outsiders_parts:mine", OWN) == 7


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adan", "No optimizer 'adan'; choose one of sgd, adam, or name your own"),
        ("no_such_module:f", r"No optimizer 'no_such_module:f': .* \(ModuleNotFoundError"),
        ("math:no_such", "math has no 'no_such'"),
        ("broken_parts:f", r"broken_parts cannot be imported \(ZeroDivisionError"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(name, told, tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text("1 / 0\n")
    monkeypatch.setattr("sys.path", ["/nowhere"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=told) as raised:
        doors.named("optimizer", name, OWN)
    assert "\n" not in str(raised.value)


def test_options_are_plain_values():
    text = "my_parts:Net(width=64, head='tanh', sizes=(1, 2), eps=1e-3)"
    options = {"width": 64, "head": "tanh", "sizes": (1, 2), "eps": 1e-3}
    assert doors.called(text) == ("my_parts:Net", options)


@pytest.mark.parametrize(
    "text", ["f(1)", "f(a=b)", "f(a=1", "f(a=1)(b=2)", "f(**{})", "f(a={[1]})"]
)
def test_other_calls_are_refused(text):
    with pytest.raises(ValueError, match="plain values"):
        doors.called(text)
