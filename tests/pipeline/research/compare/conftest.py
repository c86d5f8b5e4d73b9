"""The browser of the viewer's tests, for the page of a comparison."""

from tests.pipeline.viewer.conftest import browser, context, page

__all__ = ["browser", "context", "page"]
