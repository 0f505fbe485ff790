"""TokenLearner's ViT under the flax names of its official code (google-research/scenic).

tests/weights/state_dict_test.py sends it through a round trip.
"""

from flax import nnx

from evovit_jax.models.variables import variables
from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import flat, google

_BLOCK, _THERE = r"blocks/(\d+)", r"Transformer/encoderblock_\1"
_ATTENTION = "MultiHeadDotProductAttention_0"
_FUSER = (r"reducer/fusers/(\d+)", r"Transformer/TokenFuser_\1")
RENAMES = (
    (r"pos_embed", "Transformer/posembed_input/pos_embedding"),
    (r"patch_embed/proj/(.*)", r"embedding/\1"),
    (r"norm/(.*)", r"Transformer/encoder_norm/\1"),
    (r"head/(.*)", r"output_projection/\1"),
    (rf"{_BLOCK}/norm1/(.*)", rf"{_THERE}/LayerNorm_0/\2"),
    (rf"{_BLOCK}/norm2/(.*)", rf"{_THERE}/LayerNorm_1/\2"),
    (rf"{_BLOCK}/mlp/fc1/(.*)", rf"{_THERE}/MlpBlock_0/Dense_0/\2"),
    (rf"{_BLOCK}/mlp/fc2/(.*)", rf"{_THERE}/MlpBlock_0/Dense_1/\2"),
    (rf"{_BLOCK}/attn/proj/(.*)", rf"{_THERE}/{_ATTENTION}/out/\2"),
    (rf"{_BLOCK}/attn/qkv/(.*)", rf"{_THERE}/{_ATTENTION}/query/\2"),
    (r"(reducer/.*/token_masking)/fc1/(.*)", r"\1/Dense_0/\2"),
    (r"(reducer/.*/token_masking)/fc2/(.*)", r"\1/Dense_1/\2"),
    (r"(reducer/.*)/norm/(.*)", r"\1/LayerNorm_0/\2"),
    (rf"{_FUSER[0]}/mix/(.*)", rf"{_FUSER[1]}/Dense_0/\2"),
    (rf"{_FUSER[0]}/norm([12])/(.*)", rf"{_FUSER[1]}/fuser_mix_norm\2/\3"),
    (rf"{_FUSER[0]}/(.*)", rf"{_FUSER[1]}/\2"),
    (r"reducer/learners/(\d+)/convs/(\d+)/(.*)", r"Transformer/TokenLearnerModule_\1/Conv_\2/\3"),
)
# A network without the tokens, or with those of the other version, has no place for these.
SPARE = r"Transformer/Token(Learner|Fuser).*"


def scheme(model: nnx.Module) -> Scheme:
    """The official names."""
    version = str(getattr(model.reducer.fields, "version", "1.1"))
    suffix = "V11" if version == "1.1" else ""
    module = (r"reducer/learners/(\d+)/(.*)", rf"Transformer/TokenLearnerModule{suffix}_\1/\2")
    links = tuple(
        google.link(model, path, variable.shape, (*RENAMES, module))
        for path, variable in variables(model).items()
    )
    return Scheme(links, resize={"pos_embed": flat.grid_resizer(0)}, spare=SPARE)


FAMILIES = (Family("scenic", scheme),)
