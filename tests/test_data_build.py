"""The corpus, the evaluation, the tokenizer, training and the page of data/ about them.

Documents are read here by a small parser of our own, so that the simulation is not its own judge.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.build import corpus, readme, skills, train
from data.build import tokenizer as tokenizer_module
from data.build.glossary import FACTS, check
from data.build.town import World
from data.build.train import Batches, Phase, Trainer
from minillm.config import ModelConfig
from minillm.model import Llama

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
COLOUR = "(?:red|blue|green|yellow|black|white|silver|golden|purple|orange)"
SPOT = r"(?:in|on|under|behind) the \w+"
MOVE = re.compile(
    rf"\b[Tt]he (?P<thing>{COLOUR} \w+) (?:is )?(?P<spot>{SPOT})\."
    r"|\b(?P<who>[A-Z]\w+) (?:walked|went|ran|hurried|rode a bicycle|followed the road) to "
    r"(?P<place>the \w+)\.|\bNow (?P<who2>[A-Z]\w+) is at (?P<place2>the \w+)\."
)
TOLD = {  # question: how the sentence begins that answers it
    r"(?:What is|Do you know) the code of (\w+'s \w+)\?": r"The code of \1 is ",
    r"What is (\w+'s favourite colour)\?": r"\1 is ",
    r"What is (\w+'s secret word)\?": r"\1 is ",
    r"What is (\w+'s pet)\?": r"\1 is a ",
    r"Where does (\w+) live\?": r"\1 lives near the ",
    r"What does (\w+) like to eat\?": r"\1 likes to eat ",
    r"What does (\w+) work as\?": r"\1 works as a ",
}
GLOSSARY = {question: fact.answer for fact in FACTS for question in fact.questions}


def documents(kind: str, count: int) -> Iterator[corpus.Doc]:
    """Training documents of a kind, of 64 to 512 tokens."""
    for i in range(count):
        rng = random.Random(corpus.TRAIN_SEEDS + i)
        yield corpus.document(rng, kind, (64, 128, 256, 512)[i % 4], ask=0.5)


def where(text: str, what: str) -> re.Match | None:
    """The last sentence of `text` that says where `what` is."""
    last = None
    for move in MOVE.finditer(text):
        if what in (move["thing"], move["who"], move["who2"]):
            last = move
    return last


def truth(text: str, question: str) -> str:
    """The true answer to a question that is asked after `text`."""
    if asked := re.fullmatch(r"What is (\d+) plus (\d+)\?", question):
        return f"{asked[1]} plus {asked[2]} is {int(asked[1]) + int(asked[2])}."
    if asked := re.fullmatch(r"Where is (the )?(.+)\?", question):
        move = where(text, asked[2])
        assert move, f"{question} was never said"
        place = move["spot"] or f"at {move['place'] or move['place2']}"
        return f"{'The ' if asked[1] else ''}{asked[2]} is {place}."
    for form, start in TOLD.items():
        if asked := re.fullmatch(form, question):
            facts = set(re.findall(re.escape(asked.expand(start)) + r"\w+\.", text))
            assert len(facts) == 1, f"{question} has the answers {facts}"
            return facts.pop()
    return GLOSSARY[question]


@pytest.mark.parametrize("kind", sorted(corpus.LENGTHS))
def test_a_document_is_a_function_of_its_seed(kind: str) -> None:
    """Catches a draw from a global generator or from the order of a set: no run could resume."""
    assert list(documents(kind, 20)) == list(documents(kind, 20))
    assert len({doc.text for doc in documents(kind, 20)}) > 10


@pytest.mark.parametrize("kind", ["recall", "where", "mixed", "far", "story", "sums", "glossary"])
def test_every_answer_is_true(kind: str) -> None:
    """Catches a sentence that changes the town and does not say so, or says something else."""
    answers = 0
    for doc in documents(kind, 60):
        for start, end in doc.answers:
            asked = re.search(r'[A-Z][^.?!"\n]*\?$', doc.text[:start])
            assert asked, "an answer follows its question"
            assert doc.text[start:end] == " " + truth(doc.text[: asked.start()], asked[0])
            assert doc.text[end] == "\n"
            answers += 1
    assert answers > 15


def test_lists_are_read_back_as_they_were_last_told() -> None:
    """Catches a list whose older value is marked as the answer."""
    for doc in documents("pairs", 60):
        said: dict[str, str] = {}
        values = {start + 1: doc.text[start + 1 : end] for start, end in doc.answers}
        assert values
        for sentence in re.finditer(r"[A-Z][^.?]*\.", doc.text):
            key = re.search(rf"{COLOUR} \w+|(?!The\b)\b[A-Z][a-z]+", sentence[0])[0]
            value = next((v for at, v in values.items() if at in range(*sentence.span())), None)
            if value is None:  # told, not read back
                said[key] = sentence[0]
            else:
                assert sentence[0] == said[key] and sentence[0].endswith(f" {value}.")


def test_an_echo_is_a_stretch_of_the_words_before() -> None:
    """Catches an answer that nothing before it gives away, and a word that came twice."""
    for doc in documents("echo", 60):
        told = doc.text[: doc.text.index(".")]
        gap = max((gap for gap in corpus.ECHO_GAPS if f"{gap} " in told), key=len)
        words = told.split(f"{gap} ")
        assert len(set(words)) == len(words) and doc.answers[0][0] > len(told)
        for start, end in doc.answers:
            at = words.index(doc.text[start + 1 : end])
            assert at and doc.text[:start].endswith(f" {words[at - 1]}{gap}")


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 9), st.integers(1, 6))
def test_the_town_moves_what_it_says_it_moves(rng, people: int, things: int) -> None:
    """Catches a move to the place where the thing already was, and two things of one name."""
    world = World(rng, people, things)
    assert len(set(world.things)) == things and len(set(world.people)) == people
    for _ in range(20):
        before = dict(world.where)
        sentence = rng.choice((world.move_thing, world.move_person, world.event, world.tell))()
        changed = {what for what in world.where if world.where[what] != before.get(what)}
        moves = [m["thing"] or m["who"] or m["who2"] for m in MOVE.finditer(sentence)]
        assert moves == list(changed)


def test_held_out_sums_are_never_trained_on() -> None:
    """Catches an evaluation that asks for what was learned by heart."""
    share = sum(corpus.held_out_sum(a, b) for a in range(100) for b in range(100)) / 10_000
    assert 0.08 < share < 0.12
    sums = [re.findall(r"(\d+) plus (\d+) is", doc.text) for doc in documents("sums", 3000)]
    trained = {(int(a), int(b)) for found in sums for a, b in found}
    assert len(trained) > 2000
    assert not [pair for pair in trained if corpus.held_out_sum(*pair)]


class Recorder(random.Random):
    """A generator that notes its seed in `seeds`."""

    seeds: list[int] = []

    def __init__(self, seed: int):
        super().__init__(seed)
        self.seeds.append(seed)


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that training, evaluation and tokenizer draw from, while it is in use."""
    monkeypatch.setattr(Recorder, "seeds", [])
    for module in (train, skills, tokenizer_module):
        monkeypatch.setattr(module, "random", SimpleNamespace(Random=Recorder))
    return Recorder.seeds


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    """The shipped tokenizer."""
    return Tokenizer.from_file(str(DATA / "town" / "tokenizer.json"))


def test_skills_file_is_what_the_code_writes_from_its_own_seeds(seeds, tokens) -> None:
    """Catches an edit by hand, a corpus that changed under it, and a seed that training draws."""
    written = (DATA / "eval" / "skills.jsonl").read_text(encoding="utf-8")
    same = written == skills.text_of(list(skills.skills(tokens)))  # a short message, if not
    assert same, "run python -m data.build.skills"
    assert len(seeds) == len(set(seeds)) > 400 and max(seeds) < corpus.TRAIN_SEEDS - 1_000_000
    evaluated = set(seeds)
    seeds.clear()
    list(tokenizer_module.sample_texts(documents=4))
    assert max(seeds) < corpus.TRAIN_SEEDS and not evaluated & set(seeds)
    seeds.clear()
    Batches(tokens)(Phase(1.0, 64, {"sums": 1}, 1.0, 0.2, 0.5, 0.5, batch_tokens=256), step=0)
    assert min(seeds) >= corpus.TRAIN_SEEDS
    assert all(phase.batch_tokens // phase.length < 65536 for phase in train.PHASES)


def test_skills_have_their_fact_in_the_prompt_at_the_stated_distance(tokens) -> None:
    """Catches a question that its prompt does not answer, answers twice, or nearer than it says."""
    lines = [json.loads(row) for row in (DATA / "eval" / "skills.jsonl").open(encoding="utf-8")]
    assert len(lines) >= 400
    assert {line["skill"] for line in lines} == {"recall", "where", "glossary", "sums"}
    codings = tokens.encode_batch([line["prompt"] + line["answer"] for line in lines])
    assert max(len(coding.ids) for coding in codings) < 2048
    for line in lines:
        assert list(line) == ["skill", "prompt", "answer", "distance"]
        told, _, question = line["prompt"].rpartition("\n")
        assert line["answer"] == " " + truth(told, question)
        end = len(told)  # of the fact; where nothing is told, at the question
        if line["skill"] == "recall":
            assert told.count(line["answer"].strip()) == 1
            end = told.index(line["answer"].strip()) + len(line["answer"].strip())
        elif line["skill"] == "where":
            what = re.fullmatch(r"Where is (?:the )?(.+)\?", question)[1]
            end = where(told, what).end()
        elif line["skill"] == "sums":
            assert corpus.held_out_sum(*map(int, re.findall(r"\d+", question)))
        between = tokens.encode(told[end:], add_special_tokens=False)
        assert line["distance"] == len(between.ids)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("What is the code of Mia's chest? 4713\n é🙂"))
def test_any_text_round_trips(text: str) -> None:
    """Catches a byte without an entry, and a decoder that tidies spaces."""
    tokenizer = Tokenizer.from_file(str(DATA / "town" / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_transformers_reads_the_same_tokenizer(tokens) -> None:
    """Catches a tokenizer_config.json under which others would see other ids."""
    assert tokens.get_vocab_size() == train.VOCAB_SIZE == 4096
    theirs = AutoTokenizer.from_pretrained(DATA / "town")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (0, 1)
    for text in ("What is the code of Mia's chest?", "  two  spaces\n\nÅ 12345", ""):
        assert theirs(text)["input_ids"] == tokens.encode(text).ids
        assert tokens.encode(text).ids[0] == 0


def test_glossary_keeps_its_rules() -> None:
    """Catches two facts that one question could ask for."""
    assert check() == []


PHASE = Phase(0.00032, 32, {"where": 6, "pairs": 2, "sums": 2}, 1.0, 0.2, 0.5, 0.5, 64)
"""5 steps of 64 tokens."""


def test_a_step_has_the_same_rows_in_every_run(tokens) -> None:
    """Catches a batch that depends on anything but phase and step."""
    one, two = Batches(tokens), Batches(tokens)
    two(PHASE, 7)
    for step in (0, 3):
        for a, b in zip(one(PHASE, step), two(PHASE, step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(one(PHASE, 0)[0], one(PHASE, 1)[0])


def test_the_loss_falls_on_the_answers_first(tokens) -> None:
    """Catches targets that are off by one, and an answer's weight on the words around it."""
    phase = Phase(1.0, 256, {"sums": 1}, 1.0, 0.2, 0.5, scored=0.9, batch_tokens=512)
    ids, targets, weights, at = Batches(tokens)(phase, 0)
    flat = ids.flatten()
    next_in_row = (at + 1) % phase.length != 0
    assert torch.equal(targets[next_in_row], flat[at[next_in_row] + 1])
    answers = tokens.decode(targets[weights == 1.0].tolist())
    said = re.findall(r"\d+ plus \d+ is \d+", tokens.decode(flat.tolist()))
    assert len(said) > 10 and set(said[1:-1]) <= set(re.findall(r"\d+ plus \d+ is \d+", answers))
    assert "What" not in answers and "?" not in answers


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`trainer(folder)`: a tiny one, in eager mode, with a schedule of nine steps in two phases."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setitem(train.SHAPES, "tiny", {**shape, "intermediate_size": 96})
    longer = Phase(0.000256, 64, {"recall": 1}, 1.0, 1.0, 0.4, 1.0, 64)
    monkeypatch.setattr(train, "PHASES", (PHASE, longer))
    return lambda folder: Trainer("tiny", "cpu", tmp_path / folder, 1.0, 2e-3, compiled=False)


def run(trainer: Trainer, tokens: Tokenizer, steps: int) -> Trainer:
    """Train until the schedule has come to `steps` steps, then ask it to stop."""
    stop = threading.Event()
    step = trainer.train_step

    def counted(batch):
        losses = step(batch)
        if trainer.step >= steps:
            stop.set()
        return losses

    trainer.train_step = counted
    train.run(trainer, Batches(tokens), save_every=1e9, minutes=1e9, stop=stop)
    return trainer


def test_a_stopped_and_resumed_run_equals_one_that_was_not(trainer, tokens) -> None:
    """Catches an optimizer's state, a place in the schedule or a batch lost on the way."""
    whole = run(trainer("whole"), tokens, 99)
    assert whole.step == 9 and whole.phase() is None
    for steps in (2, 5, 6, 99):  # within a phase, at its end, and just after it
        part = trainer("part")
        assert part.resume() == (steps > 2)
        run(part, tokens, steps)
        assert part.step == min(steps, 9)
    a, b = (leaves(torch.load(t.dir / "state.pt", weights_only=True)) for t in (whole, part))
    assert a.keys() == b.keys() and len(a) > 50
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def leaves(state: object, path: str = "") -> dict[str, torch.Tensor]:
    """The tensors and numbers of a state, by their path in it."""
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for name, s in items for k, v in leaves(s, f"{path}/{name}").items()}
    number = isinstance(state, int | float | torch.Tensor)
    return {path: torch.as_tensor(state)} if number else {}


def test_ctrl_c_waits_for_the_step_and_twice_does_not() -> None:
    """Catches a state saved between the two optimizers, and a run that cannot be ended."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop = train.stop_between_steps()
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_exported_model_is_the_trained_one(trainer, tokens, tmp_path: Path, shards) -> None:
    """Catches a wrong name, shape or setting: transformers would compute something else."""
    trained = run(trainer("whole"), tokens, 3)
    out = tmp_path / "tiny"
    train.export(trained, "tiny", tokens, out, shards)
    assert len(list(out.glob("*.safetensors"))) == shards
    ours = Llama(ModelConfig.from_pretrained(out))
    weights = {name: w.bfloat16().float() for name, w in trained.model.state_dict().items()}
    ours.load_state_dict(weights)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor(tokens.encode("Where is the red key?").ids)
    with torch.no_grad():
        wanted = theirs(ids[None]).logits[0]
        torch.testing.assert_close(ours(ids), wanted, rtol=1e-4, atol=1e-5)
    assert theirs.generation_config.eos_token_id == 1


def test_the_models_have_the_size_they_are_meant_to_have() -> None:
    """Catches a shape that no longer fits into the repository, or a checkpoint of another shape."""
    for name, limits in {"town": (6e6, 14e6), "town-draft": (0, 2e6)}.items():
        with torch.device("meta"):
            model = Llama(ModelConfig.from_dict(train.model_dict(name)))
        assert limits[0] <= sum(p.numel() for p in model.parameters()) <= limits[1]
        if (config := DATA / name / "config.json").exists():
            assert json.loads(config.read_text()) == train.model_dict(name)
            weights = (DATA / name).glob("*.safetensors")
            assert sum(path.stat().st_size for path in weights) <= 32e6


def test_the_page_of_data_says_what_is_there() -> None:
    """Catches a file that was changed, added or lost since data/README.md was filled in."""
    page = (DATA / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|$", page, re.MULTILINE)
    inside = {path.relative_to(DATA).as_posix(): path for path in DATA.rglob("*.*")}
    shipped = {
        name: path.read_bytes() for name, path in inside.items()
        if path.is_file() and not name.startswith(("build/", "README")) and "/." not in name
    }  # fmt: skip
    found = [(n, f"{len(b):,}", hashlib.sha256(b).hexdigest()) for n, b in sorted(shipped.items())]
    assert told == found, "run python -m data.build.readme"


def test_the_page_of_data_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches samples, shapes or a schedule of another day, and scores of other weights."""
    monkeypatch.chdir(ROOT)
    page = (DATA / "README.md").read_text(encoding="utf-8")
    blocks = dict(readme.blocks(page))
    assert set(blocks) == {*readme.MADE, "scores"}
    again = "run python -m data.build.readme"
    assert page == readme.filled(page, {name: make() for name, make in readme.MADE.items()}), again
    for name in readme.trained():
        assert f"(files {readme.fingerprint(name)})" in blocks["scores"], again
