"""Moves expert weights into spare slots ahead of the layer that needs them, and gradients home."""

if __name__ != "foremoe.transfer":
    raise ImportError("import foremoe.transfer, not transfer")
