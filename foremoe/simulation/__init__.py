"""Recompute and update on a cluster, under a virtual clock: real planner, real copy schedule."""
