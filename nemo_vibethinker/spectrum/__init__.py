"""Spectrum phase: measure Pass@K per domain, choose the specialist checkpoints, fuse them."""
