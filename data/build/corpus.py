"""The corpus: documents that tell of a simulated town and ask about it, each word made here.

    doc = document(random.Random(7), "mixed", tokens=256)
    doc.text      "The code of Mia's chest is 4713. Tom walked to the mill. …"
    doc.answers   [(start, end), …]   the character ranges of the answers, for the training loss

Kinds of document: `echo` (random words, then parts of them again), `pairs` (lists told and read
back), `recall` (facts told, then asked), `where` (things and people that move, then asked), `mixed`
(facts and moves together), `story` (the town going about its day), `sums`, `glossary` (the course's
own terms). The split is by seed: training draws its seeds from `TRAIN_SEEDS` upwards, evaluation
below it; sums are split by value.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from data.build.glossary import FACTS
from data.build.town import World, closing, opening
from data.build.words import (
    COLOURS,
    GOODS,
    HOW,
    LOCKED,
    MOODS,
    NOUNS,
    PEOPLE,
    PLACES,
    SECRETS,
    SPOTS,
    TOPICS,
)

TRAIN_SEEDS = 1 << 32  # training seeds are at or above it, evaluation's below
CHARS_PER_TOKEN = 3.9  # of this corpus under its own tokenizer; only used to size a document
# People come up more often than words: they are what most questions turn on.
ECHO_WORDS = [*PEOPLE, *NOUNS, *COLOURS, *PLACES, *SECRETS, *GOODS, *HOW, *MOODS, *TOPICS]
ECHO_WORDS += [str(number) for number in range(10)]
ECHO_WORDS = list(dict.fromkeys(ECHO_WORDS))


@dataclass
class Doc:
    """Text under construction, with the character ranges of its answers.

    A range begins at the space before the answer. It ends before the newline that follows; in
    `pairs`, where only the value counts, before the full stop; in `echo` after a word.
    """

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)

    def say(self, sentence: str, newline: bool = False) -> None:
        """Add a sentence, on a new line if asked or if the last line has ended."""
        if self.text and not self.text.endswith("\n"):
            self.text += "\n" if newline else " "
        self.text += sentence

    def ask(self, question: str, answer: str, newline: bool = True) -> None:
        """Add a question, its answer on the same line, and the end of that line."""
        self.say(question, newline)
        self.answers.append((len(self.text), len(self.text) + 1 + len(answer)))
        self.text += f" {answer}\n"


def story(rng: random.Random, tokens: int) -> Doc:
    """The town goes about its day; every other story ends with a question on it."""
    w, doc = World(rng, people=rng.randint(2, 4), things=rng.randint(1, 3)), Doc()
    doc.say(opening(w))
    while len(doc.text) < (tokens - 30) * CHARS_PER_TOKEN:
        r = rng.random()
        sentence = w.move_thing() if r < 0.25 else w.move_person() if r < 0.45 else w.event()
        doc.say(sentence, newline=rng.random() < 0.06)
    doc.say(closing(w))
    if rng.random() < 0.5 and w.where:
        doc.ask(*w.question("where"))
    return doc


def facts_and_questions(
    rng: random.Random, tokens: int, facts: int, things: int, ask: float, idle: float
) -> Doc:
    """Tell `facts` facts, move `things` things and the people, idle, and ask at any time.

    ask, idle: chance that the next sentence is a question, or changes nothing. Questions come from
    the whole past, so the distance between a fact and its question covers the document evenly.
    """
    w, doc = World(rng, people=max(2, min(facts, 12) + things // 2), things=max(1, things)), Doc()
    end, told = tokens * CHARS_PER_TOKEN, 0
    early = rng.random() < 0.5  # all the facts first, or spread over the document
    while len(doc.text) < end:
        newline, spread = rng.random() < 0.04, len(doc.text) / end * 1.5
        if told < facts and (early or told < 2 or rng.random() < 0.3 + spread - told / facts):
            doc.say(w.tell(), newline)
            told += 1
            if rng.random() < idle:
                doc.say(w.event())
        elif rng.random() < ask:
            kinds = ["told"] * bool(w.told) + ["where"] * bool(w.where)
            if kinds:
                doc.ask(*w.question(rng.choice(kinds)), newline=rng.random() < 0.85)
        elif things and rng.random() > idle:
            doc.say(w.move_thing() if rng.random() < 0.7 else w.move_person(), newline)
        else:
            doc.say(w.event(), newline)
    return doc


def far(rng: random.Random, tokens: int) -> Doc:
    """Facts scattered over a long stretch of the town's life; at the end each is asked, once.

    In `recall` and `mixed` documents a question restates its fact, and the next question may be
    answered from there; here only the first telling has the answer, however far away it is.
    """
    w, doc = World(rng, people=rng.randint(6, 16), things=3), Doc()
    facts = rng.randint(5, max(6, min(24, tokens // 40)))
    end = rng.uniform(0.1, 0.8) * tokens * CHARS_PER_TOKEN
    while len(doc.text) < end or len(w.told) < facts:
        sentences_left = max(1.0, (end - len(doc.text)) / 45)
        if rng.random() < (facts - len(w.told)) / sentences_left:
            doc.say(w.tell())
        else:
            doc.say(rng.choice((w.event, w.event, w.move_thing, w.move_person))())
    for fact, questions in rng.sample(list(w.told.values()), len(w.told)):
        doc.ask(rng.choice(questions), fact, newline=rng.random() < 0.85)
        if rng.random() < 0.2:
            doc.say(w.event())
    return doc


def held_out_sum(a: int, b: int) -> bool:
    """Whether a + b is one of the sums that are never trained on: about one pair in ten."""
    return (a * 100 + b) * 2654435761 % 1000 < 100


def sums(rng: random.Random, lines: int) -> Doc:
    """`lines` sums of two numbers below 100, none of them held out."""
    doc = Doc()
    while len(doc.answers) < lines:
        a, b = rng.randrange(100), rng.randrange(100)
        if not held_out_sum(a, b):
            doc.ask(*sum_question(a, b))
    return doc


def sum_question(a: int, b: int) -> tuple[str, str]:
    """The question for a + b, and its answer."""
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


# What may stand between an echo's words: nothing, or always the same, up to four tokens of it.
ECHO_GAPS = (
    "", "", " and", " has", " is", "'s", " likes", " is in the", " is on the", "'s code is",
    "'s chest is", "'s pet is a", " lives near the", " works as a", "'s secret word is",
)  # fmt: skip


def echo(rng: random.Random, tokens: int) -> Doc:
    """Random words, then stretches of them again, cut at random places: what came after this word?

    Every repeated word but a stretch's first is an answer, so no other kind teaches so densely to
    look for an earlier place like the present one. The other kinds of recall build on it.
    """
    doc, gap = Doc(), rng.choice(ECHO_GAPS)
    each = 1 + len(gap.split()) + gap.startswith("'")  # about, in tokens
    words = rng.sample(ECHO_WORDS, rng.randint(3, max(4, tokens // each // 4)))
    doc.say((gap + " ").join(words) + ".")
    while len(doc.text) < tokens * CHARS_PER_TOKEN:
        start = rng.randrange(len(words) - 1)
        stretch = words[start : start + rng.randint(2, 6)]
        doc.say(stretch[0])
        for word in stretch[1:]:
            doc.text += gap
            doc.answers.append((len(doc.text), len(doc.text) + 1 + len(word)))
            doc.say(word)
    return doc


# A list's sentences: the key right before its value at first, then some words away.
PAIR_FORMS = ("{p} {v}.", "{p} has {v}.", "{p}'s code is {v}.", "The code of {p}'s {c} is {v}.")


def pairs(rng: random.Random, tokens: int) -> Doc:
    """Lists that are told and then read back in another order, in the same words.

    Only the values count as answers: the one thing to learn is whose value it is. When a key is
    told again, its newest value is the true one.
    """
    doc = Doc()
    things = rng.random() < 0.4
    form = "The {p} is {v}." if things else rng.choice((*PAIR_FORMS, PAIR_FORMS[-1]))
    world = World(rng, people=12, things=8, twins=0.7)
    most = max(2, min(8, tokens // 24))
    keys = rng.sample(world.things if things else world.people, rng.randint(2, most))
    told: dict[str, tuple[str, str]] = {}
    while len(doc.text) < tokens * CHARS_PER_TOKEN:
        some = rng.randint(1, len(keys)) if told else len(keys)
        for key in rng.sample(keys, some):
            value = rng.choice(SPOTS) if things else f"{rng.randrange(1000, 10000)}"
            told[key] = form.format(p=key, v=value, c=rng.choice(LOCKED)), value
            doc.say(told[key][0])
        for key in rng.sample(keys, len(keys)):
            sentence, value = told[key]
            if form == PAIR_FORMS[-1] and rng.random() < 0.5:
                doc.say("What is the" + sentence[3 : sentence.rindex(" is ")] + "?")
            doc.say(sentence)
            end = len(doc.text) - 1
            doc.answers.append((end - len(value) - 1, end))
    return doc


def glossary(rng: random.Random, lines: int) -> Doc:
    """`lines` different facts of the glossary, each asked in one of its wordings."""
    doc = Doc()
    for fact in rng.sample(FACTS, lines):
        doc.ask(rng.choice(fact.questions), fact.answer)
    return doc


def document(rng: random.Random, kind: str, tokens: int, ask: float = 0.3) -> Doc:
    """One document of a `kind` of LENGTHS, of about `tokens` tokens; the same for the same `rng`.

    `sums` and `glossary` are short whatever `tokens` says, and a `story` has 250 tokens at most.
    `ask` is how often recall, where and mixed documents ask.
    """
    dense = max(2, tokens // 32)  # facts that fit when nothing else is told
    if kind == "recall":
        facts = rng.randint(2, max(2, min(12, dense)))
        return facts_and_questions(rng, tokens, facts, 0, ask, idle=rng.choice((0.1, 0.6, 0.95)))
    if kind == "where":
        things = rng.randint(1, max(1, min(6, dense // 2)))
        return facts_and_questions(rng, tokens, 0, things, ask, idle=rng.choice((0.1, 0.4, 0.7)))
    if kind == "mixed":
        facts, things = rng.randint(1, 8), rng.randint(1, 5)
        return facts_and_questions(rng, tokens, facts, things, ask, idle=rng.uniform(0.3, 0.95))
    if kind == "echo":
        return echo(rng, tokens)
    if kind == "pairs":
        return pairs(rng, tokens)
    if kind == "far":
        return far(rng, tokens)
    if kind == "sums":
        return sums(rng, rng.choice((1, 1, 4)))
    if kind == "glossary":
        return glossary(rng, rng.choice((1, 1, 3)))
    assert kind == "story", kind
    return story(rng, min(tokens, rng.choice((60, 120, 250))))


ENDLESS = 1 << 30
# Typical tokens of a document of each kind; ENDLESS for those that fill whatever they are given.
LENGTHS = {
    "echo": ENDLESS, "pairs": ENDLESS, "recall": ENDLESS, "where": ENDLESS, "mixed": ENDLESS,
    "far": ENDLESS, "sums": 32, "glossary": 32, "story": 112,
}  # fmt: skip

if __name__ == "__main__":
    for kind in LENGTHS:
        print(f"--- {kind}\n{document(random.Random(3), kind, 160).text}\n")
