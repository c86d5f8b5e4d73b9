"""The verbs of the command line, one file each: options, function, printing."""
