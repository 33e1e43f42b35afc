"""The adapter to Megatron-Core: process groups, optimizer, train step, log-probs, checkpoints, CPU platform."""
