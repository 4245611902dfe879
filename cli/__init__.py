"""The command line: `tuneyard`."""
