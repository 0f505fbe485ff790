"""The network of the golden file pe_core."""

from golden_networks.flat_encoder import network, value

__all__ = ["network", "value"]
