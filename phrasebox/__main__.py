"""`python -m phrasebox` is the console script."""

from phrasebox.pipeline.commands.cli import main

main()
