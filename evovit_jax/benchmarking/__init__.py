"""Timing things in turns, beside other libraries; comparing methods at equal cost."""
