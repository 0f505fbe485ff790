"""Faults that happen to a training, and long runs."""
