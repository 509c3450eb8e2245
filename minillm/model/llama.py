"""The model: Llama and its relatives (Mistral, Qwen2, Qwen3), as one plain forward pass.

Parameter names are Hugging Face's, so a checkpoint's tensors find their places by name.
Shapes: B batch, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.model.attention import Attention
from minillm.model.layers import MLP, Reduce, RMSNorm, RoPE, identity

Observe = Callable[[str, int], AbstractContextManager]


def unobserved(name: str, layer: int) -> AbstractContextManager:
    """What `observe` is when nobody watches."""
    return nullcontext()


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + FFN(norm(x)); (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ModelConfig, layer: int, reduce: Reduce):
        super().__init__()
        self.layer = layer
        self.self_attn = Attention(config, layer, reduce)
        self.mlp = MLP(config, reduce)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope, kv, slots, observe: Observe) -> Tensor:
        with observe("attention", self.layer):
            x = x + self.self_attn(self.input_layernorm(x), rope, kv, slots)
        with observe("ffn", self.layer):
            return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Ids (B, T) in, hidden states (B, T, D) out: all of the model but the last product."""

    def __init__(self, config: ModelConfig, reduce: Reduce):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Block(config, layer, reduce) for layer in layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = RoPE(config)

    def forward(self, ids: Tensor, positions: Tensor, kv, observe: Observe) -> Tensor:
        x = self.embed_tokens(ids)
        # Once a pass, not once a layer: the angles, the cache slots and the mask.
        rope = self.rope(positions, x.dtype)
        slots = None if kv is None else kv.slots(positions)
        for layer in self.layers:
            x = layer(x, rope, kv, slots, observe)
        return self.norm(x)


class Llama(nn.Module):
    """The language model of `config`, on one rank.

    >>> model = Llama(ModelConfig.from_pretrained("data/town"))   # weights: random, float32
    >>> model(ids, positions, kv, last).shape                    # ids (B, T) -> (B, V)

    `reduce` is applied to the outputs of o_proj and down_proj: where ranks add their parts.
    `observe(name, layer)` gives a context manager entered around each "attention" and "ffn".
    Under `torch.device("meta")` it costs no memory; loaders then assign the parameters.
    """

    def __init__(
        self, config: ModelConfig, reduce: Reduce = identity, observe: Observe = unobserved
    ):
        super().__init__()
        self.config, self.observe = config, observe
        self.model = Decoder(config, reduce)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, kv=None, last: Tensor | None = None
    ) -> Tensor:
        """Float32 logits: (B, T, V), or (B, V) of the tokens at index `last` (B,) of each row.

        The arguments are those of `hidden`.  V is large: a prompt needs it at one token only.
        """
        x = self.hidden(ids, positions, kv)  # (B, T, D)
        if last is not None:
            x = x[:, 0] if x.shape[1] == 1 else x[torch.arange(len(x), device=x.device), last]
        return self.logits(x)

    def hidden(self, ids: Tensor, positions: Tensor | None = None, kv=None) -> Tensor:
        """Normed hidden states (B, T, D) of ids (B, T), before the product with the vocabulary.

        With a `kv`, row b writes its keys and values at `positions[b]`, which must ascend by one
        (a pad at the end of a row counts on), and sees all that `kv` holds before them.
        Without, the T tokens are the whole text (positions 0 … T-1): differentiable, compiles.
        """
        if positions is None:
            assert kv is None, "with a cache, say where the tokens stand: positions (B, T)"
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self.model(ids, positions, kv, self.observe)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states (..., D) -> float32 scores of every vocabulary entry, (..., V)."""
        tied = self.config.tie_word_embeddings
        weight = self.model.embed_tokens.weight if tied else self.lm_head.weight
        return F.linear(x, weight).float()
