"""`phrasebox inspect`: a dataset in the browser, or as static pages.

It searches by `phrasebox.pipeline.dataset.index`, which checks conditions. `guard.py` checks who asks.
"""
