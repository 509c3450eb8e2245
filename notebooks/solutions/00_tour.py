"""The exercises of lesson 00, solved.

Try them in the notebook first; `hint("00.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong

WORDS = ("Mia", "has", "a", "key")
SCORES = ((0, 9, 1, 2), (1, 0, 8, 3), (2, 0, 1, 7), (4, 3, 2, 0))


class ToyMemory:
    """The toy's sixteen weights. `nbytes` counts what was read: 32 bytes each time."""

    def __init__(self):
        self.nbytes = 0

    def read(self):
        """The rows of scores by word: read()["Mia"]["has"] is 9."""
        self.nbytes += 32
        return {word: dict(zip(WORDS, row, strict=True))
                for word, row in zip(WORDS, SCORES, strict=True)}  # fmt: skip

    def __repr__(self):
        return "memory"


@exercise(
    "00.1",
    cases=[
        Case(ToyMemory(), [["Mia"]], 3, expect=([["Mia", "has", "a", "key"]], 96),
             because="three steps write three words, and each reads 32 bytes"),
        Case(ToyMemory(), [["Mia"], ["a"]], 1, expect=([["Mia", "has"], ["a", "key"]], 32),
             because="one step writes a word for both texts, from one reading"),
        Case(ToyMemory(), [["Mia"], ["a"], ["key"]], 2,
             expect=([["Mia", "has", "a"], ["a", "key", "Mia"], ["key", "Mia", "has"]], 64),
             because="two steps are two readings, however many texts there are"),
        Case(ToyMemory(), [["Mia"], ["a"]], 0, expect=([["Mia"], ["a"]], 0),
             because="who writes nothing reads nothing"),
    ],
    hints=[
        "Two loops: one over the steps, one over the texts. Which is the outer one?",
        "The row of a text's last word is a dict from each word to its score. The built-in max "
        "finds the word with the highest, if its key is the row's get.",
        "For each step: read once; then, for each text, append the word that the row of its last "
        "word likes best. At the end give back the texts and memory.nbytes.",
    ],
)  # fmt: skip
def write_together(memory, texts, steps):
    """Let each text grow by `steps` words, and read the weights as seldom as can be.

    memory: read() gives the scores and counts its bytes. Returns the texts and memory.nbytes.

    The usual wrong answer finishes one text and begins the next: it reads the weights once for
    every word. Here the step is the outer loop, and all texts use what one reading brought. That
    is a batch, and the reason why servers make them. To read before both loops would be less
    still, but the toy, like a GPU, has no place beside its memory in which all weights fit.
    """
    for _ in range(steps):
        scores = memory.read()
        for text in texts:
            row = scores[text[-1]]
            text.append(max(row, key=row.get))
    return texts, memory.nbytes


@wrong("00.1", says="The texts are right, and each read the weights for itself. Let one reading "
       "serve all texts of a step.")  # fmt: skip
def reads_for_each_text(memory, texts, steps):
    for text in texts:
        for _ in range(steps):
            row = memory.read()[text[-1]]
            text.append(max(row, key=row.get))
    return texts, memory.nbytes


@wrong("00.1", says="This keeps all weights beside the memory, and there is no place for them: "
       "every step reads again.")  # fmt: skip
def reads_once_for_all(memory, texts, steps):
    scores = memory.read()
    for _ in range(steps):
        for text in texts:
            row = scores[text[-1]]
            text.append(max(row, key=row.get))
    return texts, memory.nbytes


@wrong("00.1", says="The bytes are right. Return the texts too: texts, memory.nbytes.")
def returns_the_bytes_alone(memory, texts, steps):
    return write_together(memory, texts, steps)[1]


H100_STEP = (16_060 * 10**6 + 119 * 4096 * 131_072) / (3350 * 10**9)  # seconds


@exercise(
    "00.2",
    cases=[
        Case(10, 10, 4, 1, 3, expect=(2, 1.0, 2.0),
             because="6 bytes are free for two conversations of 3 bytes; the step reads 4 + 6"),
        Case(11, 5, 4, 1, 3, expect=(2, 2.0, 1.0),
             because="the seventh free byte is no third conversation, and it is not read"),
        Case(100, 100, 40, 2, 10, expect=(3, 1.0, 3.0),
             because="three conversations of 10 tokens at 2 bytes are 60 bytes"),
        Case(10, 8, 4, 1, 8, expect=(0, 0.5, 0.0),
             because="no conversation fits, and nothing is written"),
        Case(80 * 10**9, 3350 * 10**9, 16_060 * 10**6, 131_072, 4096,
             expect=(119, H100_STEP, 119 / H100_STEP),
             because="63.94 GB are free, a conversation takes 0.537 GB, and a step reads 79.9 GB"),
    ],
    hints=[
        "How many bytes does one conversation keep? How many bytes do the weights leave free?",
        "Keep whole conversations only. Then the bytes of a step: the weights, once, and the KV "
        "cache of every conversation. Divide by the bandwidth.",
        "A step gives each conversation one token. So tokens a second are conversations divided by "
        "the seconds of a step.",
    ],
)  # fmt: skip
def serve(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context):
    """Conversations that fit, the least seconds of a step, the most tokens a second of all.

    Sizes in bytes, bandwidth in bytes a second, context in tokens.

    The usual wrong answer divides the weights alone by the bandwidth. With one short conversation
    that is nearly right; with HBM full of them the H100 reads four times as many bytes of KV cache
    as of weights, and a step takes 23.9 ms where the weights alone ask for 4.8.
    """
    each = bytes_per_token * context
    conversations = (hbm_bytes - weight_bytes) // each
    seconds = (weight_bytes + conversations * each) / bandwidth
    return conversations, seconds, conversations / seconds


@wrong("00.2", says="That is the step for the weights alone. A step also reads the KV cache of "
       "every conversation.")  # fmt: skip
def forgets_the_cache(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context):
    conversations = (hbm_bytes - weight_bytes) // (bytes_per_token * context)
    return conversations, weight_bytes / bandwidth, conversations * bandwidth / weight_bytes


@wrong("00.2", says="The weights lie in HBM too, and they were there first.")
def forgets_the_weights(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context):
    each = bytes_per_token * context
    conversations = hbm_bytes // each
    seconds = (weight_bytes + conversations * each) / bandwidth
    return conversations, seconds, conversations / seconds


@wrong("00.2", says="A step writes one token for every conversation, not one in all.")
def writes_one_token(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context):
    conversations, seconds, _ = serve(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context)
    return conversations, seconds, 1 / seconds


@wrong("00.2", says="A part of a conversation is none: `//` divides and drops the rest.")
def cuts_conversations(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context):
    each = bytes_per_token * context
    conversations = (hbm_bytes - weight_bytes) / each
    seconds = (weight_bytes + conversations * each) / bandwidth
    return conversations, seconds, conversations / seconds
