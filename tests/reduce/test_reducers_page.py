"""The table of docs/reducers.md says what the code says."""

import dataclasses
from pathlib import Path

import pytest

from liteframe import reducers

PAGE = (Path(__file__).parents[2] / "docs/reducers.md").read_text()
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.partition("## The table")[2].partition("## Where")[0].splitlines()
    if line.startswith("| `") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
}


def test_the_table_names_them_all():
    assert list(ROWS) == list(reducers)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_the_code_says(name):
    reducer, (_, space, needs, count, parameters) = reducers[name], ROWS[name]
    assert space == reducer.space
    assert set(filter(None, needs.split(", "))) == reducer.needs
    assert (count == "exact", count == "windows") == (reducer.exact, reducer.space == "patch")
    fields = {field.name: getattr(reducer, field.name) for field in dataclasses.fields(reducer)}
    assert parameters == ", ".join(f"{key}={value!r}" for key, value in fields.items())


def test_what_is_whose_names_them_all():
    named = PAGE.partition("## What is whose")[2]
    assert not [name for name in reducers if f"`{name}`" not in named]
