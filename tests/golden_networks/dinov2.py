"""The network of the golden file dinov2."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
