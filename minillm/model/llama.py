"""The model: Llama and its relatives (Mistral, Qwen2, Qwen3), as one plain forward pass.

Tokens are packed: those of all sequences lie one after the other, ΣT of them, without padding.
Parameter names are Hugging Face's, so a checkpoint's tensors find their places by name.
Shapes: ΣT packed tokens, D width, E head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.model.attention import Attend, Attention, causal
from minillm.model.layers import MLP, Linear, Reduce, RMSNorm, identity, rope_table


class Block(nn.Module):
    """One layer: x + the sum of the attention halves, then x + the sum of the FFN halves.

    A half is (x (ΣT, D), turns (ΣT, 2, E), attend) -> this rank's part (ΣT, D), with the norm
    before it, without sum, bias and residual. Halves are the seam of the model: a kernel
    takes the place of one, a span is put round one, ranks add their parts.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def attention_half(self, x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        return self.self_attn(self.input_layernorm(x), turns, attend)

    def ffn_half(self, x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        return self.mlp(self.post_attention_layernorm(x))

    def forward(self, x: Tensor, turns: Tensor, attend: Attend, reduce: Reduce) -> Tensor:
        x = add(x, reduce(self.attention_half(x, turns, attend)), self.self_attn.o_proj)
        return add(x, reduce(self.ffn_half(x, turns, attend)), self.mlp.down_proj)


def add(x: Tensor, whole: Tensor, last: Linear) -> Tensor:
    """The residual: x + (the sum of all ranks' parts + the bias of the product that ended them).

    The bias comes here, after the sum, since N ranks that each added it would add it N times.
    """
    return x + (whole if last.bias is None else whole + last.bias)


class Llama(nn.Module):
    """The language model of `config`, or the `layers` of it that one stage of a pipeline has.

    >>> model = Llama(ModelConfig.from_pretrained("data/town"))   # weights: arbitrary, float32
    >>> model(ids).shape                                          # ids (ΣT,) -> (ΣT, V)

    layers: numbered as in the whole model, whatever part is here. The first stage takes ids, the
    last returns logits; between stages goes x (ΣT, D).
    reduce: the sum over ranks of what each half yields; it may not keep its argument.
    Under `torch.device("meta")` it costs no memory; loaders then assign the parameters.
    """

    def __init__(
        self, config: ModelConfig, *, layers: range | None = None, reduce: Reduce = identity
    ):
        super().__init__()
        self.config, self.reduce = config, reduce
        self.layers = range(config.num_hidden_layers) if layers is None else layers
        self.first = self.layers.start == 0
        self.last = self.layers.stop == config.num_hidden_layers
        self.angles = torch.empty(0)  # (length, 2, E) of the positions that `prepare` prepared
        self.model = nn.Module()
        if self.first or (self.last and config.tie_word_embeddings):
            self.model.embed_tokens = Linear(config.hidden_size, config.vocab_size)
        # By number, not in a list: a stage's layers keep the names that the checkpoint gives them.
        self.model.layers = nn.ModuleDict({str(i): Block(config, i) for i in self.layers})
        if self.last:
            self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            if not config.tie_word_embeddings:
                self.lm_head = Linear(config.hidden_size, config.vocab_size)

    @property
    def blocks(self) -> list[Block]:
        """The layers that are here, in order."""
        return list(self.model.layers.values())

    @property
    def head(self) -> Linear:
        """The product with the vocabulary; tied, it is the embedding."""
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    def prepare(self, length: int, device: torch.device | str = "cpu") -> None:
        """Have the turns of positions 0 … length - 1 ready on `device`; they are kept."""
        if length > len(self.angles) or self.angles.device.type != torch.device(device).type:
            more = max(length, min(2 * len(self.angles), self.config.max_position_embeddings))
            self.angles = rope_table(self.config, more).to(device)

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, attend: Attend = causal,
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Float32 logits (ΣT, V) of ids (ΣT,), or of the rows `wanted` only.

        positions (ΣT,): where each token stands in its own text; None: the ids are one text.
        The positions must have been prepared. V is large: a prompt needs it at one token only.
        """
        if positions is None:
            positions = torch.arange(len(ids), device=ids.device)
            self.prepare(len(ids), ids.device)
        x = self.run_layers(self.embed(ids) if self.first else ids, positions, attend)  # (ΣT, D)
        if not self.last:
            return x
        return self.output(x if wanted is None else x[wanted])

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (ΣT,) -> x (ΣT, D): on a CPU in float32, which costs nothing there and is exact."""
        x = self.model.embed_tokens.look_up(ids)
        return x.float() if x.device.type == "cpu" else x

    def run_layers(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """x (ΣT, D) through all layers that are here."""
        turns = self.angles.index_select(0, positions)
        for block in self.model.layers.values():
            x = block(x, turns, attend, self.reduce)
        return x

    def output(self, x: Tensor) -> Tensor:
        """x (N, D) -> float32 scores of every vocabulary entry, (N, V)."""
        return self.head(self.model.norm(x)).float()
