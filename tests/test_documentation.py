"""Every public name says what it is, what it takes, what it raises, and shows it in an example that pytest runs."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import functools
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.docstrings import entries, errors_raised, has_example, parameters, public_methods

import fx_oto
import fx_oto.passes

PACKAGES = ("fx_oto",)
ROOT = Path(fx_oto.__file__).parents[1]
PUBLIC = {f"fx_oto.{name}": getattr(fx_oto, name) for name in fx_oto.__all__}
for _module in (fx_oto.testing, fx_oto.kinds, fx_oto.passes):
    PUBLIC |= {f"{_module.__name__}.{name}": getattr(_module, name) for name in _module.__all__}

FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
TAUGHT = FUNCTIONS | CLASSES  # modules only hold what is taught
DATA = {name: kind for name, kind in CLASSES.items() if dataclasses.is_dataclass(kind)}
METHODS = {
    f"{kind.__module__}.{kind.__qualname__}.{name}": (kind, name, function, called)
    for public in CLASSES.values()
    for kind in inspect.getmro(public)
    if kind.__module__.partition(".")[0] in PACKAGES
    for name, function, called in public_methods(kind, PACKAGES)
}


@functools.cache
def collected(module):
    """The names under which doctest finds examples, as ``pytest --doctest-modules`` does."""
    return {test.name for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples}


def arguments(kind):
    """What a class says of its arguments, or of those of the class that it refers to."""
    same = re.search(r"rguments and errors are those of ``(\w+)``", kind.__doc__)
    return (arguments(getattr(fx_oto, same[1])) if same else {}) | entries(kind.__doc__, "Args", "Attributes")


def errors(kind):
    same = re.search(r"rguments and errors are those of ``(\w+)``", kind.__doc__)
    return (errors(getattr(fx_oto, same[1])) if same else {}) | entries(kind.__doc__, "Raises")


def inherited(kind, name):
    """The text of a method, and of those that it stands in for."""
    return [getattr(base, name).__doc__ or "" for base in inspect.getmro(kind) if name in vars(base)]


def test_what_is_public_is_the_same_wherever_one_looks():
    assert dir(fx_oto) == sorted(fx_oto.__all__)
    assert len(set(fx_oto.__all__)) == len(fx_oto.__all__)
    assert set(fx_oto.passes.__all__) <= set(fx_oto.__all__)
    tree = ast.parse(Path(fx_oto.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))  # what type checkers and editors see
    assert sorted(alias.name for line in typed.body for alias in line.names) == sorted(fx_oto.__all__)


def test_the_package_itself_tells_where_to_begin():
    told = set(re.findall(r"``(?:\w+\.)?(\w+)``", fx_oto.__doc__))
    assert {name for name in fx_oto.__all__ if inspect.isfunction(getattr(fx_oto, name))} <= told
    assert {"DHSPG", "HESSO", "Pipeline", "Pass", "Analysis", "FxOtoError", "check_pass"} <= told


@pytest.mark.parametrize("name", TAUGHT)
def test_its_home_says_that_it_is_public(name):
    home = importlib.import_module(TAUGHT[name].__module__)
    assert TAUGHT[name].__name__ in home.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is(name):
    first = inspect.getdoc(PUBLIC[name]).splitlines()[0]
    assert PUBLIC[name].__doc__
    assert len(first) > 15
    assert first.endswith((".", "`", ":"))


@pytest.mark.parametrize("name", TAUGHT)
def test_its_example_is_run(name):
    thing = TAUGHT[name]
    assert has_example(thing.__doc__)
    assert f"{thing.__module__}.{thing.__qualname__}" in collected(thing.__module__)


def test_pytest_runs_examples():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in settings["addopts"]
    assert set(PACKAGES) <= set(settings["testpaths"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_and_raises(name):
    function = inspect.unwrap(FUNCTIONS[name])
    assert set(parameters(function)) == set(entries(function.__doc__, "Args"))
    assert errors_raised(function) <= set(entries(function.__doc__, "Raises"))


@pytest.mark.parametrize("name", DATA)
def test_data_says_what_it_holds(name):
    fields = {field.name: str(field.type) for field in dataclasses.fields(DATA[name])}
    said = entries(DATA[name].__doc__, "Attributes", "Args")
    assert fields.keys() <= said.keys()
    for field in (field for field, kind in fields.items() if re.search(r"\bTensor\b", kind)):
        assert "shape" in said[field] or "shape ``(" in DATA[name].__doc__.partition("Attributes:")[0], field


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_takes_and_raises(name):
    kind = CLASSES[name]
    makers = [made for base in inspect.getmro(kind) if (made := vars(base).get("__init__")) and is_ours(made)]
    if makers and not dataclasses.is_dataclass(kind):
        assert inspect.signature(kind).parameters.keys() <= arguments(kind).keys()
    checks = [vars(base)["__post_init__"] for base in inspect.getmro(kind) if "__post_init__" in vars(base)]
    for made in (*makers, *checks):
        assert errors_raised(made) <= errors(kind).keys()


def is_ours(function):
    return inspect.isfunction(function) and Path(function.__code__.co_filename).is_relative_to(ROOT)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_takes_and_raises(name):
    kind, method, function, called = METHODS[name]
    assert function.__doc__
    said = "\n".join(inherited(kind, method))
    listed = {name for text in inherited(kind, method) for name in entries(text, "Args")}
    for parameter in parameters(function) if called else ():
        assert parameter in listed or re.search(rf"``{parameter}\b", said), parameter
    if "Tensor" in function.__annotations__.values():  # as an argument or as what it returns
        assert "shape ``(" in said
    raised = {error for text in inherited(kind, method) for error in entries(text, "Raises")}
    assert errors_raised(function) <= raised


def printed(code):
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    return found.stdout.strip()


def test_importing_alone_loads_nothing_heavy():
    heavy = ("torch", "matplotlib", "pandas", "torchvision", "sklearn", "networkx", "PIL")
    code = f"import sys, fx_oto; dir(fx_oto); print([name for name in {heavy} if name in sys.modules])"
    assert printed(code) == "[]"


def test_the_facade_loads_no_extra():
    heavy = ("matplotlib", "pandas", "torchvision", "sklearn", "PIL")
    code = f"import sys, fx_oto; fx_oto.prepare; print([name for name in {heavy} if name in sys.modules])"
    assert printed(code) == "[]"


def test_the_files_that_texts_name_are_there():
    """Tests that a text refers its reader to, say."""
    texts = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *(ROOT / "fx_oto").rglob("*.md")]
    named = {
        path for text in texts for path in re.findall(r"\b(?:tests|benchmarks)/[\w/]+\.(?:py|md)\b", text.read_text())
    }
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
