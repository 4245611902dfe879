"""The full package's command line: `tuneyard`."""
