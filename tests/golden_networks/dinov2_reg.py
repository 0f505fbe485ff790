"""The network of the golden file dinov2_reg."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
