"""Verifiers that turn a task and a response into a verdict: answers of mathematics, and programs run in a sandbox."""
