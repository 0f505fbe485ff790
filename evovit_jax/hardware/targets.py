"""Accelerators that are not here, by name: "v5e:8x8", "h100:1x8"."""

from evovit_jax.errors import UserError
from evovit_jax.hardware import gpu_compiler, tpu_compiler
from evovit_jax.hardware.target import Target

KINDS: dict[str, type[Target]] = {
    **dict.fromkeys(tpu_compiler.GENERATIONS, tpu_compiler.Slice),
    **dict.fromkeys(gpu_compiler.GENERATIONS, gpu_compiler.Hosts),
}


def parse(text: str, flag: str = "--topology") -> Target:
    """The target of `text`, "v5e:8x8"; of a generation alone its smallest.

    Raises:
      UserError: there is none of that name.
    """
    name, _, size = text.partition(":")
    if name not in KINDS:
        raise UserError(f"{flag}={text} is unknown; there are {', '.join(KINDS)}")
    sizes = [target.size for target in KINDS[name](name, "1x1").sizes()]
    if size and size not in sizes:
        raise UserError(f"{flag}={text}: sizes of {name} are {', '.join(sizes)}")
    return KINDS[name](name, size or sizes[0])
