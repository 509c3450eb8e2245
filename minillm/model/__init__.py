"""Stage 3, the model: embedding, layers of attention and FFN, and the logits they end in.

layers.py     RMSNorm, rotary positions (RoPE), the FFN
attention.py  grouped-query attention over a KV cache it is handed
llama.py      the whole model, with Hugging Face's parameter names
"""

from minillm.model.llama import Llama

__all__ = ["Llama"]
