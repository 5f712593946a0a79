"""The encoder of BERT (Devlin et al. 2019), for pretrained weights.

    h   = LN(word[id] + position[i] + type[0])
    h   = LN(h + Dense(softmax(Q Kᵀ / √d) V)),     Q, K, V = Dense(h)      } num_layers times:
    h   = LN(h + Dense(GELU(Dense(h))))                                    } LN after the sum

The GELU is exact, x Φ(x). Every Dense has a bias. The ε of LayerNorm is 1e-12. Masked positions are
not attended to. `from_state` renames the tensors of a published checkpoint.
"""

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array, Params


class Bert(nn.Module):
    """The encoder; the defaults are the sizes of MiniLM-L6-H384 (Wang et al. 2020).

    Attributes:
      vocabulary: number of tokens.
      positions: the largest number of tokens in a text.
      width: D, channels of the hidden states.
      num_layers: number of layers.
      num_heads: heads of every attention; must divide `width`.
      hidden: channels inside the two Dense layers after each attention.
      epsilon: ε of LayerNorm.
    """

    vocabulary: int = 30_522
    positions: int = 512
    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    hidden: int = 1536
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """Return the hidden states of the last layer, float32 [B, L, width].

        Args:
          ids: int32 [B, L], token ids in 0..vocabulary-1; L at most `positions`.
          mask: bool [B, L], True where there is a token; at least one per row.
        """

        def norm(name: str) -> nn.LayerNorm:
            # Not the faster E[x²] - E[x]², which is less accurate than the reference code.
            return nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, name=name)

        words = nn.Embed(self.vocabulary, self.width, name="words")(ids)  #       [B, L, D]
        places = nn.Embed(self.positions, self.width, name="positions")
        kinds = nn.Embed(2, self.width, name="types")
        h = words + places(jnp.arange(ids.shape[1]))[None] + kinds(jnp.zeros((1, 1), jnp.int32))
        h = norm("norm")(h)
        heads = (self.num_heads, self.width // self.num_heads)
        for i in range(self.num_layers):
            q, k, v = (
                nn.DenseGeneral(heads, name=f"{i}_{name}")(h) for name in ("query", "key", "value")
            )  #                                                                  [B, L, heads, d]
            attended = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
            out = nn.Dense(self.width, name=f"{i}_out")(attended.reshape(h.shape))
            h = norm(f"{i}_norm_1")(h + out)
            out = nn.gelu(nn.Dense(self.hidden, name=f"{i}_up")(h), approximate=False)
            h = norm(f"{i}_norm_2")(h + nn.Dense(self.width, name=f"{i}_down")(out))
        return h


OUTSIDE = {  # names of the checkpoint's tensors outside of the layers -> our names
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
}
INSIDE = {  # names of the checkpoint's tensors inside a layer -> our names
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_2",
}
# Beginnings of names that are ignored: the numbers 0..511, and BERT's head for sentence pairs.
UNUSED = ("embeddings.position_ids", "pooler.")


def from_state(state: Mapping[str, np.ndarray], bert: Bert) -> Params:
    """Convert the tensors of a published BERT checkpoint to the parameters of `bert`.

    Args:
      state: tensors by the names of the published checkpoints, kernels [out, in] as in PyTorch.
      bert: the network; its sizes must be the checkpoint's.

    Raises:
      UserError: a tensor is missing, unknown, or of another shape.
    """
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    wanted = jax.eval_shape(bert.init, jax.random.key(0), ids, mask)["params"]
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.items():
        if name.startswith(UNUSED):
            continue
        layer, kind = name.rsplit(".", 1)
        ours = OUTSIDE.get(layer, "")
        if found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", layer):
            ours = f"{found[1]}_{INSIDE.get(found[2])}"
        if ours not in wanted:
            raise UserError(
                f"the BERT checkpoint has a tensor {name!r} that this network lacks; expected a "
                f"BERT encoder of {bert.num_layers} layers"
            )
        leaves = wanted[ours]
        if kind == "weight":
            kind = next(leaf for leaf in leaves if leaf != "bias")  # kernel, scale or embedding
            tensor = tensor.T if kind == "kernel" else tensor  # torch: [out, in]
        if tensor.size != leaves[kind].size:
            raise UserError(
                f"the BERT checkpoint's {name!r} is of shape {tensor.shape}, but the network "
                f"has {leaves[kind].shape}; use a checkpoint of the same sizes"
            )
        params.setdefault(ours, {})[kind] = np.asarray(tensor.reshape(leaves[kind].shape))
    if missing := [n for n in wanted if set(wanted[n]) != set(params.get(n, {}))]:
        raise UserError(
            f"the BERT checkpoint lacks the tensors of {', '.join(missing)}; use a complete "
            f"checkpoint of {bert.num_layers} layers"
        )
    return params
