"""The exercises of lesson 00, solved.

Try them in the notebook first; `hint("00.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "00.1",
    cases=[
        Case(32, 16, 1, expect=0.5,
             because="32 bytes at 16 bytes a second take 2 seconds, so half a token a second"),
        Case(32, 16, 2, expect=1.0,
             because="in the same 2 seconds a batch of two gets two tokens, one for each prompt"),
        Case(16 * 10**9, 3_200 * 10**9, 1, expect=200.0,
             because="16 GB of weights leave an HBM of 3.2 TB/s 200 times a second"),
        Case(16 * 10**9, 3_200 * 10**9, 64, expect=12_800.0,
             because="each of the 200 steps a second writes 64 tokens"),
    ],
    hints=[
        "Work the toy by hand: 32 bytes of weights, 16 bytes a second. How long does a step take?",
        "How many steps fit into one second? It need not be a whole number.",
        "A step reads the weights once, however many prompts are in the batch, and gives each of "
        "them one token. So: steps a second first, and then the tokens that each step gives.",
    ],
)  # fmt: skip
def tokens_per_second_at_most(weight_bytes, bandwidth, batch):
    """The speed that no decode can pass: tokens a second, over the whole batch.

    weight_bytes: size of the weights in bytes; bandwidth: of the memory they lie in, in bytes a
    second; batch: how many prompts are answered together.

    The usual wrong answer forgets the batch: it takes the weights to be read again for each
    prompt. They are read once for a step, and the step serves all. This is why servers batch. It
    holds until the arithmetic for so many prompts takes longer than the reading; stage 3 of the
    course looks for that point.
    """
    steps_per_second = bandwidth / weight_bytes
    return steps_per_second * batch


@wrong("00.1", says="That is how long a step takes. How many such steps fit into one second?")
def gives_seconds(weight_bytes, bandwidth, batch):
    return weight_bytes / bandwidth


@wrong("00.1", says="So many steps fit into a second. Each step writes a token for every prompt "
       "of the batch.")  # fmt: skip
def forgets_the_batch(weight_bytes, bandwidth, batch):
    return bandwidth / weight_bytes


@wrong("00.1", says="Here every prompt reads the weights for itself. A batch shares one reading.")
def reads_again_for_each_prompt(weight_bytes, bandwidth, batch):
    return bandwidth / (weight_bytes * batch)


@exercise(
    "00.2",
    cases=[
        Case(10, 4, 1, 1, 1, 1, expect=3,
             because="the weights leave 6 bytes, and a key and a value of 1 byte each are 2"),
        Case(1_000, 40, 3, 2, 5, 2, expect=8,
             because="the weights leave 960 bytes, a token takes 2 · 3 · 2 · 5 · 2 = 120"),
        Case(11, 4, 1, 1, 1, 1, expect=3,
             because="7 bytes hold three tokens of 2 bytes; half a token is of no use"),
        Case(8 * 2**20, 12_130_816, 6, 2, 64, 2, expect=0,
             because="8 MiB do not even hold the weights, so no token fits"),
        Case(80 * 10**9, 16 * 10**9, 32, 8, 128, 2, expect=488_281,
             because="64 GB are left, and a token of this 8-billion model takes 131,072 bytes"),
    ],
    hints=[
        "First the weights take their place. How many bytes are left for the KV cache?",
        "What does one token leave behind? In each layer, for each kv head, a key and a value; "
        "each of them has head_dim numbers.",
        "Divide what is left by the bytes of one token, and keep the whole tokens only. Then look "
        "at the case in which the weights alone are too large: fewer than no token cannot fit.",
    ],
)  # fmt: skip
def tokens_that_fit(hbm_bytes, weight_bytes, layers, kv_heads, head_dim, bytes_per_number):
    """How many tokens the KV cache can hold in the HBM that the weights leave free.

    The answer is a whole number; 0 if the weights do not fit. Sizes are in bytes.

    The usual wrong answer forgets that a key *and* a value are kept, and so promises twice the
    tokens that fit. A server that believed it would run out of memory in mid-conversation: the
    model fits, and the conversations do not.
    """
    bytes_per_token = 2 * layers * kv_heads * head_dim * bytes_per_number  # a key and a value
    free_bytes = hbm_bytes - weight_bytes
    return max(0, free_bytes // bytes_per_token)


@wrong("00.2", says="Twice as many as fit: a token leaves a key and a value.")
def forgets_the_value(hbm_bytes, weight_bytes, layers, kv_heads, head_dim, bytes_per_number):
    bytes_per_token = layers * kv_heads * head_dim * bytes_per_number
    return max(0, (hbm_bytes - weight_bytes) // bytes_per_token)


@wrong("00.2", says="The weights lie in HBM too, and they were there first.")
def forgets_the_weights(hbm_bytes, weight_bytes, layers, kv_heads, head_dim, bytes_per_number):
    return hbm_bytes // (2 * layers * kv_heads * head_dim * bytes_per_number)


@wrong("00.2", says="A part of a token is no token: `//` divides and drops the rest.")
def cuts_tokens(hbm_bytes, weight_bytes, layers, kv_heads, head_dim, bytes_per_number):
    bytes_per_token = 2 * layers * kv_heads * head_dim * bytes_per_number
    return max(0, (hbm_bytes - weight_bytes) / bytes_per_token)


@wrong("00.2", says="Fewer than no token: when the weights do not fit, the answer is 0.")
def goes_below_zero(hbm_bytes, weight_bytes, layers, kv_heads, head_dim, bytes_per_number):
    return (hbm_bytes - weight_bytes) // (2 * layers * kv_heads * head_dim * bytes_per_number)
