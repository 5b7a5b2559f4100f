"""Routing in training: replay of chosen experts, its verification, and the router's own health."""
