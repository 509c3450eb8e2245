"""Fill in the numbers of data/README.md: `python -m data.build.readme`, after a change of data.

The page is written by hand but for its blocks, each between two marks that do not show:

    <!-- files: python -m data.build.readme -->
    …
    <!-- end -->

`--keep-scores` leaves out the evaluation, which takes a minute or two.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch

from data.build import corpus, train
from minillm.config import ModelConfig
from minillm.model.llama import Llama

DATA = Path("data")
SAMPLES = {  # kind of document: seed, tokens; chosen because they are short
    "echo": (5, 48), "pairs": (8, 64), "recall": (5, 64), "where": (3, 64), "mixed": (8, 72),
    "far": (3, 100), "sums": (6, 0), "glossary": (12, 0), "story": (21, 90),
}  # fmt: skip
NOT_MEASURED = "Not measured yet.\n"


def files() -> list[Path]:
    """What is shipped under data/: all but this page, the code and hidden files, in order."""
    inside = (path.relative_to(DATA) for path in DATA.rglob("*") if path.is_file())
    shipped = (
        path for path in inside
        if path.parts[0] not in ("README.md", "build")
        and not any(part.startswith((".", "__")) for part in path.parts)
    )  # fmt: skip
    return sorted((DATA / path for path in shipped), key=lambda path: path.as_posix())


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_table() -> str:
    """File, bytes and sha256 of each shipped file."""
    rows = ["| file | bytes | sha256 |", "|---|---:|---|"]
    for path in files():
        name = path.relative_to(DATA).as_posix()
        rows.append(f"| `{name}` | {path.stat().st_size:,} | `{sha256(path)}` |")
    return "\n".join(rows) + "\n"


def samples() -> str:
    """A document of each kind, as quotations."""
    parts = []
    for kind in corpus.LENGTHS:
        seed, tokens = SAMPLES.get(kind, (1, 64))
        text = corpus.document(random.Random(corpus.TRAIN_SEEDS + seed), kind, tokens, ask=0.4).text
        quoted = [
            textwrap.fill(line, 100, initial_indent="> ", subsequent_indent="> ")
            for line in text.splitlines()
        ]
        parts.append(f"**{kind}**\n\n" + "\n>\n".join(quoted) + "\n")
    return "\n".join(parts)


def shapes() -> str:
    """The models' shapes, from the code that trains them."""
    rows = ["| model | parameters | D | L | H | K | FFN |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name in train.SHAPES:
        config = ModelConfig.from_dict(train.model_dict(name))
        with torch.device("meta"):
            count = sum(p.numel() for p in Llama(config).parameters())
        rows.append(
            f"| `{name}` | {count:,} | {config.hidden_size} | {config.num_hidden_layers} "
            f"| {config.num_attention_heads} | {config.num_key_value_heads} "
            f"| {config.intermediate_size} |"
        )
    return "\n".join(rows) + "\n"


def schedule() -> str:
    """The phases of training, from the code that trains."""
    rows = [
        "| million tokens | row | kinds, in percent | answer weighs | text weighs |",
        "|---:|---:|---|---:|---:|",
    ]
    for phase in train.PHASES:
        mix = ", ".join(f"{kind} {share:g}" for kind, share in phase.mix.items())
        rows.append(
            f"| {phase.tokens:g} | {phase.length:,} | {mix} "
            f"| {phase.answer_weight:g} | {phase.text_weight:g} |"
        )
    return "\n".join(rows) + "\n"


def trained() -> list[str]:
    """The shipped models that are here with their weights."""
    return [name for name in train.SHAPES if any((DATA / name).glob("*.safetensors"))]


def fingerprint(name: str) -> str:
    """Of everything the scores of a model depend on: another file, another fingerprint."""
    paths = [p for p in files() if p.parent == DATA / name] + [DATA / "eval" / "skills.jsonl"]
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()[:16]


def scores() -> str:
    """What `python -m minillm evaluate` prints of each trained model."""
    parts = []
    for name in trained():
        command = ["-m", "minillm", "evaluate", "--model", f"data/{name}"]
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"the evaluation of data/{name} failed, see above; nothing written")
        parts.append(
            f"`python {' '.join(command)}` (files {fingerprint(name)}):\n\n"
            f"```text\n{done.stdout.strip()}\n```\n"
        )
    return "\n".join(parts) or NOT_MEASURED


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each block of the page."""
    for found in _BLOCK.finditer(page):
        yield found[2], found[3]


def filled(page: str, texts: dict[str, str]) -> str:
    """The page with these blocks replaced; each must be there."""
    if missing := set(texts) - {name for name, _ in blocks(page)}:
        raise SystemExit(f"data/README.md has no block for {', '.join(sorted(missing))}")
    return _BLOCK.sub(lambda m: f"{m[1]}\n{texts.get(m[2], m[3])}\n{m[4]}", page)


_BLOCK = re.compile(
    r"(<!-- (\w+): python -m data\.build\.readme -->\n)\n(.*?)\n?(<!-- end -->)", re.DOTALL
)
MADE = {"files": files_table, "samples": samples, "shapes": shapes, "schedule": schedule}
"""What costs nothing to make again; `scores` comes on top."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep-scores", action="store_true", help="do not evaluate again")
    keep = parser.parse_args().keep_scores
    texts = {name: make() for name, make in MADE.items()}
    if not keep:
        texts["scores"] = scores()
    path = DATA / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), texts), encoding="utf-8", newline="\n")
    print(f"wrote {', '.join(texts)} in {path}")


if __name__ == "__main__":
    main()
