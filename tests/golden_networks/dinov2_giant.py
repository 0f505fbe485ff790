"""The network of the golden file dinov2_giant."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
