"""When each copy runs and on which path: pure functions, integers only, alike on all ranks."""
