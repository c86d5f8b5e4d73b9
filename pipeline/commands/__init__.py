"""The verbs of the command line, one file each: options, function, printing. `--help` shows a file's first line."""
