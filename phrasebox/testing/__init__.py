"""Checks of kinds, as functions for the tests of your package. They need no test runner.

Each raises AssertionError, which says what the kind does not do:

    from phrasebox.testing import check_explainer

    def test_explainer() -> None:
        check_explainer(Bright, is_blind=True)

check_explainer  maps: shapes, values, the same again, alone and in a batch; nothing is left on the model
check_source     one answer for each record, and regions inside their image
check_reader     each row once, wherever the input is cut, also behind a URL; errors that say where
check_exporter   the boxes of the dataset, chosen and corrected, in any split, the same bytes again
check_recipe     finite losses that fall, the same on several ranks; a training that stops and goes on
check_settings   closed, frozen, described, and read back as they are stored; the other functions call it
OpenClipModel    a model for `check_explainer`, if the explainer is not defined on a class token
"""

from phrasebox.testing.explainers import check_explainer
from phrasebox.testing.exporters import check_exporter
from phrasebox.testing.models import OpenClipModel
from phrasebox.testing.readers import check_reader
from phrasebox.testing.recipes import check_recipe
from phrasebox.testing.settings import check_settings
from phrasebox.testing.sources import check_source

__all__ = [
    "OpenClipModel",
    "check_explainer",
    "check_exporter",
    "check_reader",
    "check_recipe",
    "check_settings",
    "check_source",
]
