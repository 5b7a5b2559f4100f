"""Adapters to training frameworks, one module each; nothing here is imported by the core."""
