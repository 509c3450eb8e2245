"""The exercises of lesson 13, solved.

Try them in the notebook first; `hint("13.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "13.1",
    cases=[
        Case(1, expect=[("ask", 0), ("take", 0), ("compute", 0)],
             because="a single layer has no next one to ask for"),
        Case(2, expect=[("ask", 0), ("ask", 1), ("take", 0), ("compute", 0), ("take", 1),
                        ("compute", 1)],
             because="both slots are free at the beginning, so layer 1 is asked for at once"),
        Case(3, expect=[("ask", 0), ("ask", 1), ("take", 0), ("compute", 0), ("ask", 2),
                        ("take", 1), ("compute", 1), ("take", 2), ("compute", 2)],
             because="layer 2 takes the slot of layer 0: it may come as soon as that has computed"),
    ],
    hints=[
        "At the beginning both slots are free: ask for layer 0 and layer 1.",
        "Then for each layer: ask for the one after it (layer 0's next is on its way), take it, "
        "compute it.",
        "Start with [(\"ask\", 0)]. For each layer add the ask for layer + 1 if there is one, then "
        "take and compute the layer.",
    ],
)  # fmt: skip
def order(layers):
    """What is done when, as (verb, layer), with two slots.

    The usual wrong answer asks for the next layer after it has computed this one: right, and as
    slow as taking turns, since nothing moves while it computes.
    """
    steps = [("ask", 0)]
    for layer in range(layers):
        if layer + 1 < layers:
            steps.append(("ask", layer + 1))
        steps += [("take", layer), ("compute", layer)]
    return steps


@wrong("13.1", says="Each layer is asked for when it is needed: nothing moves while one computes.")
def takes_turns(layers):
    return [(verb, n) for n in range(layers) for verb in ("ask", "take", "compute")]


@wrong("13.1", says="There are two slots: layer 2 would be written over layer 0 before it has "
       "computed.")  # fmt: skip
def asks_for_all(layers):
    asks = [("ask", n) for n in range(layers)]
    return asks + [(verb, n) for n in range(layers) for verb in ("take", "compute")]


@wrong("13.1", says="After the last layer there is no next one.")
def asks_beyond_the_end(layers):
    steps = [("ask", 0)]
    for layer in range(layers):
        steps += [("ask", layer + 1), ("take", layer), ("compute", layer)]
    return steps


@exercise(
    "13.2",
    cases=[
        Case(0, 64e9, 1, 64e9, 3200e9, 1e15, expect=1.0,
             because="64 GB over a link of 64 GB/s take a second, and compute is done long before"),
        Case(64e9, 64e9, 1, 64e9, 3200e9, 1e15, expect=1.0,
             because="what is resident does not cross the link"),
        Case(64e9, 64e9, 100, 64e9, 3200e9, 1e15, expect=100.0,
             because="the pass still takes a second, and serves a hundred tokens"),
        Case(80e9, 0, 1, 64e9, 3200e9, 1e15, expect=40.0,
             because="nothing is streamed, so HBM's bandwidth sets the time: 25 ms"),
        Case(36e9, 64e9, 100_000, 64e9, 3200e9, 1e15, expect=10_000.0,
             because="10¹⁶ FLOP take 10 s: now arithmetic is the slowest, and the link is hidden"),
    ],
    hints=[
        "Three things happen in a pass, side by side: a transfer, reading HBM, arithmetic.",
        "The transfer is streamed ÷ link. HBM gives resident + streamed. A weight has 2 bytes and "
        "takes 2 FLOP, so arithmetic is (resident + streamed) · tokens ÷ flops.",
        "The slowest of the three is the time of the pass. It makes `tokens` tokens.",
    ],
)  # fmt: skip
def tokens_per_second(resident, streamed, tokens, link, hbm, flops):
    """Tokens a second of a model of which a part is streamed in every pass.

    The usual wrong answer adds the three times up. They overlap: the slowest hides the others.
    """
    whole = resident + streamed
    return tokens / max(streamed / link, whole / hbm, whole * tokens / flops)


@wrong("13.2", says="They overlap: the slowest sets the time, the others are hidden behind it.")
def adds_them_up(resident, streamed, tokens, link, hbm, flops):
    whole = resident + streamed
    return tokens / (streamed / link + max(whole / hbm, whole * tokens / flops))


@wrong("13.2", says="What is resident stays: only the streamed part crosses the link.")
def streams_it_all(resident, streamed, tokens, link, hbm, flops):
    whole = resident + streamed
    return tokens / max(whole / link, whole / hbm, whole * tokens / flops)


@wrong("13.2", says="A pass moves the weights once, whatever number of tokens it computes for.")
def moves_for_each_token(resident, streamed, tokens, link, hbm, flops):
    whole = resident + streamed
    return 1 / max(streamed / link, whole / hbm, whole / flops)
