"""The network of the golden file dinov3_plus_qkvb."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
