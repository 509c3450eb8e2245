"""The exercises of lesson 31, solved.

Try them in the notebook first; `hint("31.1")` helps there.
"""

import torch

from minillm.lesson import Case, exercise, wrong


def _rows(*numbers):
    """Keys or values so small that a verdict can show them: one number a token."""
    return torch.tensor(numbers)


def _sees(*rows):
    return torch.tensor(rows, dtype=torch.bool)


@exercise(
    "31.1",
    cases=[
        Case(None, _rows(1), _rows(5), expect=(_rows(1), _rows(5), _sees([1])),
             because="the first token of a text sees itself alone"),
        Case(None, _rows(1, 2), _rows(5, 6),
             expect=(_rows(1, 2), _rows(5, 6), _sees([1, 0], [1, 1])),
             because="in a prefill a token sees itself and those before it"),
        Case((_rows(1, 2), _rows(5, 6)), _rows(3), _rows(7),
             expect=(_rows(1, 2, 3), _rows(5, 6, 7), _sees([1, 1, 1])),
             because="in a decode step the one new token sees the whole text"),
        Case((_rows(1, 2), _rows(5, 6)), _rows(3, 4), _rows(7, 8),
             expect=(_rows(1, 2, 3, 4), _rows(5, 6, 7, 8), _sees([1, 1, 1, 0], [1, 1, 1, 1])),
             because="the first of two new tokens is the third of the text: it sees three"),
    ],
    hints=[
        "Without a past the keys and values are the new ones. Else `torch.cat` puts the new ones "
        "behind the old ones.",
        "Row i of `sees` belongs to new token i. In the text it is token S + i: it sees S + i + 1 "
        "tokens.",
        "With all = len(keys) and T = len(k): `torch.ones(T, all).tril(all - T).bool()`.",
    ],
)  # fmt: skip
def extend(past, k, v):
    """The keys and values of a text after T more tokens, and what each of these sees.

    past: None, or (keys, values), each (S, K, E). k, v: (T, K, E). Returns keys and values, each
    (S + T, K, E), and `sees`, bool (T, S + T).

    The usual wrong answer is the triangle of a square, with its corner at the first token of the
    text, as `is_causal=True` of torch puts it: right for a prefill from the start, and with a past
    every new token is blind to most of it.
    """
    if past is not None:
        k, v = torch.cat((past[0], k)), torch.cat((past[1], v))
    new = len(k) - (0 if past is None else len(past[0]))
    return k, v, torch.ones(new, len(k)).tril(len(k) - new).bool()


@wrong("31.1", says="The triangle begins at the first token of the text. Row 0 is the first *new* "
       "token: it sees the whole past, and itself.")  # fmt: skip
def begins_at_the_corner(past, k, v):
    keys, values, sees = extend(past, k, v)
    return keys, values, torch.ones_like(sees).tril()


@wrong("31.1", says="Every new token sees all the others, those after it too. Two new tokens: the "
       "first must not see the second.")  # fmt: skip
def sees_the_future(past, k, v):
    keys, values, sees = extend(past, k, v)
    return keys, values, torch.ones_like(sees)


@wrong("31.1", says="The past is lost: the old keys and values stand before the new ones.")
def forgets_the_past(past, k, v):
    return extend(None, k, v)


@wrong("31.1", says="The new ones stand before the old ones. They are appended: row s belongs to "
       "the token s of the text.")  # fmt: skip
def puts_the_new_first(past, k, v):
    keys, values, sees = extend(past, k, v)
    if past is not None:
        keys, values = torch.cat((k, past[0])), torch.cat((v, past[1]))
    return keys, values, sees


LLAMA_70B = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
             "num_key_value_heads": 8}  # fmt: skip
QWEN_4B = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip


@exercise(
    "31.2",
    cases=[
        Case({"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}, expect=48 * 2,
             because="3 layers, 2 heads of size 4, a key and a value: 48 numbers. (Where the "
             "config names no KV heads, each query head has its own)"),
        Case(LLAMA_70B, expect=327_680,
             because="80 layers, 8 KV heads of 8192 ÷ 64 = 128, a key and a value, 2 bytes each"),
        Case(QWEN_4B, expect=147_456,
             because="the config names its head_dim, 128: it need not be hidden_size ÷ heads"),
    ],
    hints=[
        "In each layer every KV head keeps a key and a value, each of head_dim numbers.",
        "KV heads: config.get(\"num_key_value_heads\"), or else as many as query heads. The head's "
        "size: config.get(\"head_dim\"), or else hidden_size // num_attention_heads.",
        "2 · layers · KV heads · head size numbers, of 2 bytes each.",
    ],
)  # fmt: skip
def token_bytes(config):
    """Bytes that one token takes in the KV cache, in bf16; config: the contents of a config.json.

    The usual wrong answer takes the head's size from hidden_size, which is right for most models
    and wrong for Qwen3, or counts query heads, of which several share one key.
    """
    heads = config["num_attention_heads"]
    size = config.get("head_dim", config["hidden_size"] // heads)
    return 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * size * 2


@wrong("31.2", says="Query heads are counted. Those of a group share one key and one value.")
def counts_query_heads(config):
    return token_bytes(config | {"num_key_value_heads": config["num_attention_heads"]})


@wrong("31.2", says="The head's size is guessed from hidden_size. Where the config names its "
       "head_dim, that is it.")  # fmt: skip
def guesses_the_head(config):
    return token_bytes({key: config[key] for key in config if key != "head_dim"})


@wrong("31.2", says="Only half of it: a token leaves a key *and* a value.")
def counts_keys_only(config):
    return token_bytes(config) // 2


@wrong("31.2", says="One layer only: each keeps keys and values of its own.")
def counts_one_layer(config):
    return token_bytes(config | {"num_hidden_layers": 1})


@exercise(
    "31.3",
    cases=[
        Case(1000, 1, 600, 1, 1, 1, 10, 10, expect=5,
             because="400 bytes are left; a user's 20 tokens take 4 bytes each"),
        Case(1000, 2, 600, 1, 2, 1, 10, 10, expect=8,
             because="each GPU holds 300 bytes of weights and one of the two heads: 700 ÷ 80"),
        Case(1000, 2, 600, 1, 3, 1, 10, 10, expect=4,
             because="three heads on two GPUs: one of them holds two, so a token takes 8 bytes "
             "there, and 700 ÷ 160 are 4"),
        Case(1000, 4, 600, 1, 2, 1, 10, 10, expect=10,
             because="two heads on four GPUs: each head is held twice, so a token takes 4 bytes on "
             "each GPU, and 850 ÷ 80 are 10"),
        Case(1000, 2, 2400, 1, 2, 1, 10, 10, expect=0,
             because="the weights do not even fit"),
        Case(80e9, 4, 141.1e9, 80, 8, 128, 6000, 2000, expect=68,
             because="a GPU has 44.7 GB left; two heads of 8,000 tokens take 0.66 GB"),
    ],
    hints=[
        "Look at one GPU: what the weights leave of it, and what one user takes of it at the end.",
        "A GPU holds weights ÷ gpus, and of the KV heads heads ÷ gpus, rounded up: there is no "
        "half a head.",
        "A user's tokens at the end: prompt + answer. Each takes 2 · layers · (heads of a GPU) · "
        "size · 2 bytes. Divide what is left by that, round down, and not below 0.",
    ],
)  # fmt: skip
def users(hbm, gpus, weights, layers, heads, size, prompt, answer):
    """How many users fit at once on a server of `gpus` GPUs with `hbm` bytes each.

    weights: bytes of them all, spread evenly over the GPUs. layers, KV heads, and a head's size;
    two bytes a number. prompt, answer: tokens of each user.

    The usual wrong answer divides the cache by the GPUs as well. A head lies on one GPU as a
    whole, so with more GPUs than KV heads each is held more than once.
    """
    a_token = 2 * layers * -(-heads // gpus) * size * 2
    return max(0, int((hbm - weights / gpus) // (a_token * (prompt + answer))))


@wrong("31.3", says="The cache is divided by the GPUs as if heads could be cut. With more GPUs "
       "than KV heads, each head is held more than once.")  # fmt: skip
def cuts_heads(hbm, gpus, weights, layers, heads, size, prompt, answer):
    whole = 4 * layers * heads * size * (prompt + answer)
    return max(0, int((gpus * hbm - weights) // whole))


@wrong("31.3", says="The heads of a GPU are rounded down. Three heads on two GPUs: one of these "
       "holds two, and is full first.")  # fmt: skip
def rounds_heads_down(hbm, gpus, weights, layers, heads, size, prompt, answer):
    whole = max(1, heads // gpus) * gpus
    return users(hbm, gpus, weights, layers, whole, size, prompt, answer)


@wrong("31.3", says="The answer is forgotten: it is kept too, and the cache is largest at its end.")
def counts_the_prompt(hbm, gpus, weights, layers, heads, size, prompt, answer):
    return users(hbm, gpus, weights, layers, heads, size, prompt, 0)


@wrong("31.3", says="The weights are forgotten: they take their room first.")
def forgets_the_weights(hbm, gpus, weights, layers, heads, size, prompt, answer):
    return users(hbm, gpus, 0, layers, heads, size, prompt, answer)


@wrong("31.3", says="Each GPU is given all the weights. They are spread over the GPUs.")
def copies_the_weights(hbm, gpus, weights, layers, heads, size, prompt, answer):
    return users(hbm, gpus, weights * gpus, layers, heads, size, prompt, answer)
