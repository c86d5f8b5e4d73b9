"""`python -m tests.figures` writes the tables into the pages; with `--photos` and `--out` it makes them first."""

from __future__ import annotations

from tests.figures.pages import render

if __name__ == "__main__":
    render()
