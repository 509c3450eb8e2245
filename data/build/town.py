"""A small simulated town: a `World` holds its state, and each sentence that changes it tells so.

    world = World(random.Random(7), people=2, things=1)
    world.move_thing()        "Vera cleaned up, so now the red kite is on the table."
    world.question("where")   ("Where is the red kite?", "The red kite is on the table.")

So a question has one true answer at any time.
"""

from __future__ import annotations

import random

from data.build.words import (
    BEYOND,
    BUILDINGS,
    COLOURS,
    DAYS,
    DAYTIMES,
    DOINGS,
    FACT_KINDS,
    FOODS,
    GIRLS,
    GOODS,
    HOW,
    JOBS,
    KINDS_OF_DAY,
    LASTING,
    LOCKED,
    MONTHS,
    MOODS,
    NIGHTS,
    NOISES,
    NOUNS,
    NUMBERS,
    PEOPLE,
    PETS,
    PLACES,
    SAYINGS,
    SIGHTS,
    SIZES,
    SPOTS,
    TOPICS,
    VALUES,
)


class World:
    """The town's state. Every method that changes it returns the sentence that tells the change.

    `where` maps a thing to its spot ("in the drawer") and a person to "at the " and a place; `told`
    maps (person, kind of fact) to the fact and its questions. `twins` is the chance that two of the
    things share a noun, so that only the colour tells them apart.
    """

    def __init__(self, rng: random.Random, people: int = 4, things: int = 3, twins: float = 0.3):
        self.rng = rng
        self.people = rng.sample(PEOPLE, people)
        nouns = rng.sample(NOUNS, things)
        if things > 1 and rng.random() < twins:
            nouns[1] = nouns[0]
        self.things = [f"{c} {n}" for c, n in zip(rng.sample(COLOURS, things), nouns, strict=True)]
        self.where: dict[str, str] = {}
        self.told: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}

    def tell(self, kind: str | None = None, person: str | None = None) -> str:
        """A new fact, of any kind or of `kind`; an event when everybody has one of that kind."""
        rng = self.rng
        kind = kind or ("code" if rng.random() < 0.55 else rng.choice(list(VALUES)))
        free = [p for p in self.people if (p, kind) not in self.told]
        if not free and person is None:
            return self.event()
        person = person or rng.choice(free)
        value = f"{rng.randrange(1000, 10000)}" if kind == "code" else rng.choice(VALUES[kind])
        words = {"p": person, "c": rng.choice(LOCKED), "v": value}
        fact, questions = FACT_KINDS[kind]
        self.told[person, kind] = fact.format(**words), tuple(q.format(**words) for q in questions)
        return self.told[person, kind][0]

    def question(self, about: str) -> tuple[str, str] | None:
        """A question and its answer: on a fact ("told"), or on where something now is ("where").

        None when nothing of that sort has been said yet.
        """
        rng = self.rng
        if about == "told" and self.told:
            fact, questions = self.told[rng.choice(list(self.told))]
            return (questions[0] if rng.random() < 0.85 else rng.choice(questions)), fact
        if about == "where" and self.where:
            return self.where_question(rng.choice(list(self.where)))
        return None

    def where_question(self, what: str) -> tuple[str, str]:
        """The question where the thing or person `what` is, and its answer."""
        if what in self.people:
            return f"Where is {what}?", f"{what} is {self.where[what]}."
        return f"Where is the {what}?", f"The {what} is {self.where[what]}."

    def move_thing(self, thing: str | None = None) -> str:
        """A thing, any or `thing`, is put where it was not before."""
        rng = self.rng
        thing, who = thing or rng.choice(self.things), rng.choice(self.people)
        spot = rng.choice([s for s in SPOTS if s != self.where.get(thing)])
        self.where[thing] = spot
        return rng.choice((
            f"{who} put the {thing} {spot}.",
            f"{who} put the {thing} {spot}.",
            f"{who} left the {thing} {spot}.",
            f"{who} hid the {thing} {spot}.",
            f"{who} cleaned up, so now the {thing} is {spot}.",
            f"Now the {thing} is {spot}.",
            f"Thanks to {who}, the {thing} is {spot}.",
        ))  # fmt: skip

    def move_person(self, who: str | None = None) -> str:
        """A person, any or `who`, goes where they were not before."""
        rng = self.rng
        who = who or rng.choice(self.people)
        place = rng.choice([p for p in PLACES if f"at the {p}" != self.where.get(who)])
        self.where[who] = f"at the {place}"
        return rng.choice((
            f"{who} walked to the {place}.",
            f"{who} went to the {place}.",
            f"{who} ran to the {place}.",
            f"{who} hurried to the {place}.",
            f"{who} rode a bicycle to the {place}.",
            f"Now {who} is at the {place}.",
            f"After lunch {who} went to the {place}.",
            f"{who} followed the road to the {place}.",
        ))  # fmt: skip

    def event(self) -> str:
        """A sentence that changes nothing: the colour of the day."""
        return self.rng.choice(EVENTS)(self)

    def pair(self) -> tuple[str, str]:
        """Two different people."""
        a, b = self.rng.sample(self.people, 2)
        return a, b


def _pronouns(name: str) -> tuple[str, str, str]:
    return ("she", "her", "her") if name in GIRLS else ("he", "him", "his")


# Each event makes all of its sentences, then picks one: the draws are part of what a seed means,
# so the order of the sentences, and of the picks in them, must stay.
# fmt: off
def weather(w: World) -> str:
    pick = w.rng.choice
    return pick((
        f"It was a {pick(KINDS_OF_DAY)} {pick(DAYTIMES)}.",
        f"The {pick(('rain', 'snow', 'wind', 'fog', 'sun'))} {pick(LASTING)}.",
        f"Soft {pick(('rain', 'snow', 'light'))} fell over the "
        f"{pick(('roofs', 'hills', 'fields', 'streets'))}.",
        f"Clouds moved slowly over the {pick(('hills', 'fields', 'roofs', 'water'))}.",
        f"The {pick(('morning', 'evening', 'night'))} air smelled of {pick(GOODS)}.",
        f"In {pick(MONTHS)} the nights were {pick(NIGHTS)}.",
        "The sky turned pink and then dark blue.",
        "For a while the sun shone and everyone was happy.",
    ))


def talk(w: World) -> str:
    a, b = w.pair()
    pick = w.rng.choice
    saying = pick(SAYINGS)
    comma, stop = ("", "") if saying.endswith("?") else (",", ".")
    return pick((
        f'"{saying}{comma}" said {a} to {b}.',
        f'"{saying}{comma}" said {a} {pick(HOW)}.',
        f'{a} said {pick(HOW)}: "{saying}{stop}"',
        f"{a} and {b} talked about {pick(TOPICS)}.",
        f"{a} told {b} a story about {pick(TOPICS)} and {pick(TOPICS)}.",
        f"{a} asked {b} about {pick(TOPICS)}, but {b} only smiled.",
        f"{b} laughed at a joke that {a} made.",
        f"{a} waved to {b}, and {b} waved back.",
        f"{a} sang a song about {pick(TOPICS)}.",
        f"{a} explained {pick(HOW)} why {pick(TOPICS)} mattered.",
        f"{a} had a dream about {pick(TOPICS)}.",
    ))


def deed(w: World) -> str:
    a, b = w.pair()
    pick = w.rng.choice
    she, her, hers = _pronouns(a)
    mood, other = w.rng.sample(MOODS, 2)
    return pick((
        f"{a} helped {b} with the work.",
        f"{a} shared some {pick(FOODS)} with {b}.",
        f"{a} was {pick(MOODS)}, so {she} sat down for a while.",
        f"{a} {pick(DOINGS)}.",
        f"{a} {pick(DOINGS)}, and {b} {pick(DOINGS)}.",
        f"While {b} {pick(DOINGS)}, {a} {pick(DOINGS)}.",
        f"{a} lost {hers} {pick(('gloves', 'glasses', 'shoes'))}, and {b} helped {her} look.",
        f"{a} looked {mood} and {other}.",
        f"{a} saw {pick(SIGHTS)} {pick(BEYOND)}.",
        f"A {pick(PETS)} ran across the street and made {a} jump.",
        f"{a} bought {pick(NUMBERS)} {pick(GOODS)} for {b}.",
        f"Because {she} was {pick(MOODS)}, {a} waited for {b}.",
        f"{a} {pick(HOW)} thanked {b} for the {pick(GOODS)}.",
        f"{a} wrote a {pick(('long', 'short', 'funny', 'beautiful'))} note to an old friend.",
    ))


def surroundings(w: World) -> str:
    pick = w.rng.choice
    return pick((
        f"The {pick(('church', 'school', 'station'))} clock struck {pick(NUMBERS[:11])}.",
        f"Somewhere a {pick(NOISES)}.",
        f"The {pick(JOBS)} opened the shop on {pick(DAYS)}.",
        f"On {pick(DAYS)} the streets were full of {pick(GOODS)}.",
        f"The {pick(SIZES)} {pick(BUILDINGS)} {pick(BEYOND)} was {pick(SIZES)}.",
        f"There was {pick(SIGHTS)} {pick(BEYOND)}.",
        f"A ship full of {pick(GOODS)} came in {pick(MONTHS)}.",
        f"{pick(GOODS).capitalize()} cost {pick(NUMBERS)} coins.",
        f"{pick(TOPICS).capitalize()} made everyone {pick(MOODS)}.",
        f"People said that {pick(DAYS)} would be better.",
        "Nothing else happened for a long time.",
        "The town was quiet again.",
        "It was time for tea.",
    ))


EVENTS = (weather, talk, deed, deed, surroundings)


def opening(w: World) -> str:
    pick, (a, b) = w.rng.choice, w.pair()
    return pick((
        f"One {pick(KINDS_OF_DAY[:4])} {pick(DAYTIMES)}, {a} met {b} in the street.",
        f"Once there was a small town by a river, where {a} and {b} were good friends.",
        f"It was {pick(DAYS)}, and {a} got up early.",
        f"This is a story about {a} and {b}.",
        f"On {pick(DAYS)}, {a} and {b} had a plan.",
    ))


def closing(w: World) -> str:
    a, b = w.pair()
    return w.rng.choice((
        f"In the end {a} and {b} were happy, and the town fell asleep.",
        f"That night {a} slept very well.",
        f"And {a} never forgot that day.",
        f'"What a good day," said {b}, and {a} agreed.',
        "And that was that.",
    ))
# fmt: on
