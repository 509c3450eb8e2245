"""The tokenizer: byte-level BPE with 4,096 entries, trained on the corpus.

Digits stand alone (a number is read digit by digit, as it is added), words carry the space before
them, and any UTF-8 text round-trips, because every byte has an entry. A text begins with BOS, which
`encode` puts there. Rerun: `python -m data.build.tokenizer OUT_DIR`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data.build.corpus import TRAIN_SEEDS, document
from data.build.glossary import FACTS
from data.build.words import COMMON, FACT_KINDS, PEOPLE, VALUES

BOS, EOS = "<|begin|>", "<|end|>"
VOCAB_SIZE = 4096
PIECES = (
    r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sample_texts(documents: int = 12_000) -> Iterator[str]:
    """Documents of every kind, and the glossary whole, so that its words become few tokens each.

    The seeds lie just below those of training, far above those of evaluation.
    """
    for fact in FACTS:
        for question in fact.questions:
            yield from [f"{question} {fact.answer}\n"] * 40
    kinds = ("recall", "where", "mixed", "story")
    for i in range(documents):
        yield document(random.Random(TRAIN_SEEDS - 1 - i), kinds[i % 4], 150).text
    for fact, _ in FACT_KINDS.values():
        yield fact
    for values in VALUES.values():
        yield " ".join(values)
    yield from PEOPLE  # as the first word of a text, too: without a space before it
    yield " ".join(COMMON)


def train_tokenizer() -> Tokenizer:
    """The tokenizer of `sample_texts`: BOS is 0, EOS is 1. Takes some seconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and, for transformers, tokenizer_config.json into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    made = train_tokenizer()
    save(made, Path(sys.argv[1]))
    print(f"{made.get_vocab_size()} entries")
