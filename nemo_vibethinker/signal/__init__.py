"""Signal phase: group-relative advantages, the maximum-entropy (MGPO) weight and the clipped policy loss."""
