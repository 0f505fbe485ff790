"""The network of the golden file clip."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
