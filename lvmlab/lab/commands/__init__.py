"""The commands of `lvmlab`, a file a group. Their arguments are checked before torch is imported."""
