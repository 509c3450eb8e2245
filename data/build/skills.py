"""The evaluation: `python -m data.build.skills` writes data/eval/skills.jsonl.

Its seeds are below those of training. One object a line: `skill`, `prompt`, `answer` (what greedy
decoding must continue with, the space before it included) and `distance`, the tokens between the
end of the fact and the start of the question (0 where nothing was told).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from data.build import corpus
from data.build.corpus import Doc
from data.build.glossary import FACTS
from data.build.town import World
from data.build.words import VALUES

DISTANCES = (32, 64, 128, 256, 512, 1000, 1500, 1800)  # tokens; a recall line lies near one of them
RECALL_LINES, WHERE_LINES, SUM_LINES = 36, 120, 80  # recall: lines for each distance


def recall_seed(distance: int, i: int) -> int:
    """The seed of the i-th recall line at `distance`; below TRAIN_SEEDS."""
    return distance * 1000 + i


def where_seed(i: int) -> int:
    """The seed of the i-th where line; below TRAIN_SEEDS."""
    return 9_000_000 + i


def recall(rng: random.Random, distance: int, tokens: Tokenizer) -> dict:
    """A line: some facts, the one to be asked, then the town goes on for about `distance` tokens.

    Up to three other facts are told on the way.
    """
    w, doc = World(rng, people=8, things=3), Doc()
    for _ in range(rng.randint(0, 2)):
        doc.say(w.tell())
    kind = "code" if rng.random() < 0.7 else rng.choice(list(VALUES))
    others = set(w.told)
    fact = w.tell(kind)
    key = (set(w.told) - others).pop()
    doc.say(fact)
    told, more, passed = len(doc.text), rng.randint(0, 3), 0
    while passed < distance * 0.95 - 10:
        before = len(doc.text)
        if more and rng.random() < 0.2:
            doc.say(w.tell())
            more -= 1
        else:
            doc.say(rng.choice((w.event, w.event, w.event, w.move_thing, w.move_person))())
        passed += count(doc.text[before:], tokens)  # no token spans two sentences
    between = doc.text[told:]
    doc.say(w.told[key][1][0], newline=True)
    return line("recall", doc.text, fact, count(between, tokens))


def where(rng: random.Random, tokens: Tokenizer) -> dict:
    """A line: things and people move; the one to be asked moves twice at least, or more."""
    w, doc = World(rng, people=4, things=rng.randint(2, 4)), Doc()
    target = rng.choice(w.things + w.people[:2])
    move, since = (w.move_thing if target in w.things else w.move_person), 0
    moves = rng.randint(2, 4)
    while moves:
        if rng.random() < 0.3:
            doc.say(move(target))
            since, moves = len(doc.text), moves - 1
        else:
            doc.say(rng.choice((w.event, w.move_thing, w.move_person))())
    for _ in range(rng.randint(0, 10)):
        before = w.where[target]
        sentence = rng.choice((w.event, w.move_thing, w.move_person))()
        doc.say(sentence)
        since = since if w.where[target] == before else len(doc.text)
    between = doc.text[since:]
    question, answer = w.where_question(target)
    doc.say(question, newline=True)
    return line("where", doc.text, answer, count(between, tokens))


def count(text: str, tokens: Tokenizer) -> int:
    """How many tokens `text` has."""
    return len(tokens.encode(text, add_special_tokens=False).ids)


def line(skill: str, prompt: str, answer: str, distance: int) -> dict:
    """An object of the file; `answer` comes without the space."""
    return {"skill": skill, "prompt": prompt, "answer": " " + answer, "distance": distance}


def skills(tokens: Tokenizer) -> Iterator[dict]:
    """All lines of the file, in order."""
    for distance in DISTANCES:
        for i in range(RECALL_LINES):
            yield recall(random.Random(recall_seed(distance, i)), distance, tokens)
    for i in range(WHERE_LINES):
        yield where(random.Random(where_seed(i)), tokens)
    for i, fact in enumerate(FACTS):
        yield line("glossary", fact.questions[i % len(fact.questions)], fact.answer, 0)
    rng = random.Random(1)
    held_out = [(a, b) for a in range(100) for b in range(100) if corpus.held_out_sum(a, b)]
    for a, b in rng.sample(held_out, SUM_LINES):
        yield line("sums", *corpus.sum_question(a, b), 0)


def text_of(lines: list[dict]) -> str:
    """The file's text: one JSON object a line."""
    return "".join(json.dumps(each) + "\n" for each in lines)


def main() -> None:
    tokens, out = Tokenizer.from_file("data/town/tokenizer.json"), Path("data/eval/skills.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = list(skills(tokens))
    out.write_text(text_of(lines), encoding="utf-8", newline="\n")
    print(f"wrote {len(lines)} lines to {out}")


if __name__ == "__main__":
    main()
