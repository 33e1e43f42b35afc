"""Evaluation: benchmark protocols and scores with confidence intervals."""
