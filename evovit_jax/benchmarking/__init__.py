"""Timing things in turns, beside other libraries."""
