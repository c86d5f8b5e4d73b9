"""`phrasebox inspect`: a dataset in the browser, or as static pages."""
