"""Experiments, one file each, kept as runs by `lvmlab.runs`."""
