"""Input that means harm: what it must not reach, run or leave behind."""
