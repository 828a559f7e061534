"""The public names of lipreg, and the module under which each is documented."""

import functools
import importlib
import pkgutil
from types import ModuleType

import lipreg


@functools.cache
def modules() -> tuple[str, ...]:
    """Every public module of the package; those nearest to the top come first."""
    found = [module.name for module in pkgutil.walk_packages(lipreg.__path__, "lipreg.")]
    shown = [name for name in found if "._" not in name]
    return tuple(sorted(shown, key=lambda name: (name.count("."), name)))


def offered(module: ModuleType) -> list[str]:
    """The names in `__all__`, or else those defined in the module, without an underscore."""
    own = (n for n, value in vars(module).items() if _module(value) == module.__name__)
    names = getattr(module, "__all__", None) or [name for name in own if name[0] != "_"]
    return [name for name in names if not isinstance(getattr(module, name), ModuleType)]


@functools.cache
def _homes() -> dict[tuple[str, int], str]:
    """The module that documents a thing of this name and identity, the nearest to the top."""
    homes: dict[tuple[str, int], str] = {}
    for place in (*modules(), "lipreg"):
        module = importlib.import_module(place)
        for name in offered(module):
            homes.setdefault((name, id(getattr(module, name))), place)
    return homes


def home(name: str, value: object) -> str | None:
    """The module that documents `value`, offered under `name`; None where it is not public."""
    return _homes().get((name, id(value)))


def entries(place: str) -> list[str]:
    """The names that a module's section documents, in the order in which it offers them."""
    module = importlib.import_module(place)
    return [name for name in offered(module) if home(name, getattr(module, name)) == place]


@functools.cache
def targets() -> dict[str, str]:
    """Every public module and name, `lipreg.attacks.pgd`, and the name it is documented by."""
    full = {place: place for place in modules()}
    for place in (*modules(), "lipreg"):
        module = importlib.import_module(place)
        for name in offered(module):
            full[f"{place}.{name}"] = f"{home(name, getattr(module, name))}.{name}"
    return full


def _module(value: object) -> str | None:
    return getattr(value, "__module__", None)
