"""A BERT encoder (Devlin et al. 2019) in plain torch: what all-MiniLM-L6-v2 needs, without the seconds that importing a
library of every model takes. The names of its weights are those of transformers' `BertModel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class BertSizes:
    """Sizes of the network, named as in its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class Embeddings(nn.Module):
    """Words, their places, and the one segment that there is; to be filled by `load_state_dict`.

    Drawing eleven million initial values would take longer than reading the final ones.
    """

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        counts = (sizes.vocab_size, sizes.max_position_embeddings, sizes.type_vocab_size)
        unfilled = (nn.Embedding.from_pretrained(torch.empty(n, sizes.hidden_size)) for n in counts)
        self.word_embeddings, self.position_embeddings, self.token_type_embeddings = unfilled
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0])


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.heads = sizes.num_attention_heads
        self.query = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.key = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.value = nn.Linear(sizes.hidden_size, sizes.hidden_size)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        q, k, v = (of(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for of in (self.query, self.key, self.value))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=attended[:, None, None])
        return out.transpose(1, 2).flatten(2)


class ResidualOutput(nn.Module):
    """A linear layer, added to what came in, and a layer norm."""

    def __init__(self, n_inputs: int, sizes: BertSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(n_inputs, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.Module):
    """Self-attention, then two linear layers with GELU between; layer norm after each sum."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        attention = {"self": SelfAttention(sizes), "output": ResidualOutput(sizes.hidden_size, sizes)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(sizes.hidden_size, sizes.intermediate_size)})
        self.output = ResidualOutput(sizes.intermediate_size, sizes)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, attended), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class Layers(nn.Module):
    """All layers, one after the other."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_hidden_layers))

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, attended)
        return x


class Bert(nn.Module):
    """Token ids to their last hidden states."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = Layers(sizes)

    def forward(self, ids: Tensor, attended: Tensor) -> Tensor:
        """Hidden states [n, length, hidden_size] of ids [n, length]; only tokens `attended` [n, length] are looked at.

        Each text must have a token that is attended.
        """
        return self.encoder(self.embeddings(ids), attended)
