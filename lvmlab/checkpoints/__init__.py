"""Checkpoints that the field has released, read into the lab's networks: one file a family. Nothing here runs code from a checkpoint."""
