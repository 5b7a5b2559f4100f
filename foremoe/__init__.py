"""ForeMoE: expert load balance per micro-step, from routing foresight."""

__version__ = "0.1.0"
