"""`python -m phrasebox.pipeline` is the console script."""

from phrasebox.pipeline.cli import main

main()
