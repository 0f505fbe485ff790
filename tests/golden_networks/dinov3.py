"""The network of the golden file dinov3."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
