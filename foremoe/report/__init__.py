"""The report: one self-contained page of figures from plans, runs and timelines."""
