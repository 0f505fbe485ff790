"""Every field of a run, its checks, its command line, and the recipes that set it."""

from evovit_jax.config.checks import check
from evovit_jax.config.command_line import from_flags, load
from evovit_jax.config.fields import field_names, get_config
from evovit_jax.config.variants import finish

__all__ = ["check", "field_names", "finish", "from_flags", "get_config", "load"]
