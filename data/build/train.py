"""Train the shipped models from nothing: `python -m data.build.train town` (and `town-draft`).

One to three hours on two cores; minutes on a GPU. It may be stopped at any moment: the state is
saved every few minutes under `.train/`, and the same command goes on from there. Batches depend on
the step's number alone, so a resumed run sees the same data as one that was never stopped.

What makes so small a model recall (tried on two cores, see data/README.md): Muon on the matrices,
loss weighted towards the answers, and documents that begin short, with two facts, and grow to the
full context.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from data.build import corpus
from data.build.tokenizer import BOS, EOS, VOCAB_SIZE, save, train_tokenizer
from minillm.config import ModelConfig
from minillm.machine.host import n_cores
from minillm.model.attention import causal
from minillm.model.llama import Llama

SHAPES = {  # 6.1 M and 1.0 M parameters
    "town": {
        "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
        "intermediate_size": 832,
    },
    "town-draft": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 320,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `tokens` tokens in rows of `length`."""

    tokens: float  # millions
    length: int
    mix: dict[str, float]  # kind of document: its share of the tokens, in percent
    answer_weight: float  # of an answer's token in the loss; every other token weighs `text_weight`
    text_weight: float
    ask: float  # how often the documents ask
    scored: float  # share of the tokens with a loss: the answers, then others drawn at random
    batch_tokens: int = 8192


START = {"recall": 50, "where": 32, "sums": 10, "glossary": 6, "story": 2}  # percent of the tokens
LISTS = {"pairs": 70, "recall": 12, "where": 8, "sums": 6, "glossary": 4}
ECHOES = {"echo": 60, "pairs": 30, "recall": 4, "sums": 3, "glossary": 3}
KEYS = {"echo": 8, "pairs": 32, "recall": 26, "where": 18, "sums": 10, "glossary": 6}
WHOLE = {"pairs": 12, "recall": 30, "where": 25, "mixed": 14, "sums": 9, "glossary": 5, "story": 5}
LONG = {"far": 50, "pairs": 4, "recall": 6, "where": 13, "mixed": 8, "sums": 7, "glossary": 6}
LONG["story"] = 6
PHASES = (
    Phase(1.5, 64, START, 1.0, 0.2, ask=0.6, scored=0.5, batch_tokens=4096),
    Phase(2.0, 128, START, 1.0, 0.2, ask=0.6, scored=0.5, batch_tokens=4096),
    Phase(3.0, 256, WHOLE, 1.0, 0.2, ask=0.5, scored=0.4, batch_tokens=4096),
    Phase(4.0, 128, LISTS, 1.0, 0.02, ask=0.6, scored=0.5, batch_tokens=4096),
    Phase(1.5, 64, ECHOES, 1.0, 0.02, ask=0.6, scored=0.6, batch_tokens=2048),
    Phase(1.5, 128, ECHOES, 1.0, 0.02, ask=0.6, scored=0.6, batch_tokens=2048),
    Phase(1.2, 128, KEYS, 1.0, 0.05, ask=0.6, scored=0.6, batch_tokens=2048),
    Phase(2.0, 256, WHOLE, 1.0, 0.1, ask=0.5, scored=0.5, batch_tokens=4096),
    Phase(2.0, 512, WHOLE, 1.0, 0.2, ask=0.4, scored=0.5, batch_tokens=4096),
    Phase(1.0, 2048, WHOLE, 1.0, 0.3, ask=0.4, scored=0.4),
    Phase(2.8, 2048, LONG, 1.0, 0.1, ask=0.3, scored=0.4),
    Phase(0.4, 2048, LONG, 1.0, 0.9, ask=0.3, scored=1.0),
)
WARMUP = 100  # steps
COOLDOWN = 0.2  # the last part of all tokens, over which the rate falls to zero


def model_dict(name: str) -> dict:
    """The config.json of the shipped model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        **SHAPES[name],
        "num_key_value_heads": SHAPES[name]["num_attention_heads"] // 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }


class Batches:
    """Rows of token ids with a loss weight each: the same (phase, step) gives the same rows."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)

    def row(self, rng: random.Random, phase: Phase) -> tuple[list[int], list[float]]:
        """Whole documents, BOS and EOS around each, cut at phase.length + 1; ids, their weights."""
        ids: list[int] = []
        weights: list[float] = []
        # A share is of tokens, and a short document brings few: it must come up more often.
        chances = [
            share / min(phase.length, corpus.LENGTHS[kind]) for kind, share in phase.mix.items()
        ]
        while len(ids) < phase.length + 1:
            kind = rng.choices(list(phase.mix), chances)[0]
            doc = corpus.document(rng, kind, phase.length, phase.ask)
            coded = self.tokenizer.encode(doc.text, add_special_tokens=False)
            is_answer = bytearray(len(doc.text) + 1)
            for start, end in doc.answers:
                is_answer[start:end] = b"\1" * (end - start)
            ids += [self.bos, *coded.ids, self.eos]
            values = [
                phase.answer_weight if is_answer[b - 1] else phase.text_weight
                for _, b in coded.offsets
            ]
            weights += [0.0, *values, phase.text_weight]
        return ids[: phase.length + 1], weights[: phase.length + 1]

    def __call__(self, phase: Phase, step: int) -> list[torch.Tensor]:
        """ids (B, T); and of the N scored predictions: target, weight, index into B·T.

        The N are the answers' tokens first, then others drawn at random.
        """
        rows = phase.batch_tokens // phase.length
        seed = corpus.TRAIN_SEEDS + step * 65536
        made = [self.row(random.Random(seed + i), phase) for i in range(rows)]
        ids, weights = torch.tensor([r[0] for r in made]), torch.tensor([r[1] for r in made])
        targets, weights = ids[:, 1:].flatten(), weights[:, 1:].flatten()
        order = weights * (weights == 1.0) + torch.rand(
            weights.shape, generator=torch.Generator().manual_seed(step)
        )
        at = order.topk(int(len(weights) * phase.scored)).indices.sort().values
        return [ids[:, :-1].contiguous(), targets[at], weights[at], at]


def initialise(model: Llama) -> None:
    """Normal(0, 0.02); what writes into the residual stream is scaled down by its depth."""
    generator = torch.Generator().manual_seed(0)
    depth = (2 * model.config.num_hidden_layers) ** -0.5
    for name, p in model.named_parameters():
        if p.dim() == 1:
            torch.nn.init.ones_(p)
        else:
            out = "o_proj" in name or "down_proj" in name
            torch.nn.init.normal_(p, std=0.02 * (depth if out else 1.0), generator=generator)


class Trainer:
    """The model, its two optimizers, the place in the schedule; `save` and `resume` keep it all.

    name: of SHAPES. state: the folder of the state. scale: times the tokens of PHASES. compiled:
    False runs eagerly, slower and without a C++ compiler.
    """

    def __init__(
        self, name: str, device: str, state: Path, scale: float, lr: float, compiled: bool = True
    ):
        self.dir, self.device, self.lr = state, device, lr
        self.phases = [Phase(p.tokens * scale * 1e6, *list(vars(p).values())[1:]) for p in PHASES]
        self.total = sum(p.tokens for p in self.phases)
        self.config = ModelConfig.from_dict(model_dict(name))
        self.model = Llama(self.config)
        initialise(self.model)
        self.model.to(device)
        self.model.prepare(self.config.max_position_embeddings, device)
        matrices = [
            p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n
        ]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embed" in n]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.step, self.tokens = 0, 0
        self.loss = torch.compile(self._loss, dynamic=False) if compiled else self._loss

    def _loss(
        self, ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, at: torch.Tensor
    ):
        """Weighted mean loss, mean loss of answers: of ids' (B, T) predictions those at `at` (N,).

        The product with the vocabulary is a third of a step's time, so only the scored tokens go
        through it.
        """
        rows, width = ids.shape
        positions = torch.arange(width, device=ids.device).repeat(rows)
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(ids.flatten(), positions, partial(causal, rows=rows), at)
        each = F.cross_entropy(logits, targets, reduction="none")
        answers = (weights == 1.0).float()
        answers_loss = (each * answers).sum().detach() / answers.sum().clamp(min=1)
        return (each * weights).sum() / weights.sum(), answers_loss

    def phase(self) -> Phase | None:
        """The phase that the next step belongs to; None at the end of the schedule."""
        end = 0.0
        for phase in self.phases:
            end += phase.tokens
            if self.tokens < end:
                return phase
        return None

    def rate(self) -> float:
        """The learning rate of the next step: up over WARMUP steps, down over the COOLDOWN."""
        left = 1 - self.tokens / self.total
        return self.lr * min(1.0, (self.step + 1) / WARMUP, max(0.02, left / COOLDOWN))

    def train_step(self, batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of both optimizers on a batch of Batches; the two losses of `_loss`."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
        loss, answers = self.loss(*(x.to(self.device) for x in batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step, self.tokens = self.step + 1, self.tokens + batch[0].numel()
        return loss.detach(), answers

    def save(self) -> None:
        """Write state.pt, at once or not at all."""
        self.dir.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
        }
        torch.save(state, self.dir / "state.tmp")
        (self.dir / "state.tmp").replace(self.dir / "state.pt")  # a stop in mid-write loses nothing

    def resume(self) -> bool:
        """Go back to where `save` was called; False when there is nothing to go back to."""
        if not (self.dir / "state.pt").exists():
            return False
        state = torch.load(self.dir / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens = state["step"], state["tokens"]
        return True


def export(trainer: Trainer, name: str, tokenizer: Tokenizer, out: Path, shards: int) -> None:
    """The Hugging Face layout: config, tokenizer, bf16 weights, an index of them if several files.

    `shards` files of about equal size.
    """
    save(tokenizer, out)
    weights = {
        k: v.to("cpu", torch.bfloat16).contiguous() for k, v in trainer.model.state_dict().items()
    }
    total, at, index = sum(v.nbytes for v in weights.values()), 0, {}
    for key, value in weights.items():
        shard = min(shards - 1, at * shards // total)
        at += value.nbytes
        numbered = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        index[key] = numbered if shards > 1 else "model.safetensors"
    for file in sorted(set(index.values())):
        part = {k: v for k, v in weights.items() if index[k] == file}
        save_file(part, out / file, metadata={"format": "pt"})
    if shards > 1:
        listing = {"metadata": {"total_size": total}, "weight_map": index}
        (out / "model.safetensors.index.json").write_text(json.dumps(listing, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(model_dict(name), indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "max_length": 2048}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def run(
    trainer: Trainer, batches: Batches, save_every: float, minutes: float, stop: threading.Event
) -> None:
    """Train to the end of the schedule, for `minutes`, or until `stop` is set; then save the state.

    The next batch is made while this one is computed. The state is also saved every `save_every`
    minutes.
    """
    began = saved = time.monotonic()
    seen, loss, answers = 0, 0.0, 0.0
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(lambda: (None, []))
        while (phase := trainer.phase()) and not stop.is_set():
            if time.monotonic() - began >= minutes * 60:
                break
            made_for, batch = ahead.result()
            if made_for is not phase:
                batch = batches(phase, trainer.step)  # the phase ended under the batch made ahead
            ahead = pool.submit(lambda p=phase, step=trainer.step + 1: (p, batches(p, step)))
            now = [x.item() for x in trainer.train_step(batch)]
            # A running mean, from this run's first step.
            keep = min(0.95, seen / (seen + 10 * phase.batch_tokens))
            loss, answers = (
                old * keep + new * (1 - keep) for old, new in zip((loss, answers), now, strict=True)
            )
            seen += batch[0].numel()
            seconds = time.monotonic() - began
            line = progress(trainer, phase, seconds) + (
                f" · loss {loss:.3f} · answers {answers:.3f} · {seen / seconds:,.0f} tok/s"
            )
            print(line, end="\n" if trainer.step % 50 == 0 else "\r", flush=True)
            if time.monotonic() - saved > save_every * 60:
                trainer.save()
                saved = time.monotonic()
    trainer.save()


def progress(trainer: Trainer, phase: Phase, seconds: float) -> str:
    """How far the schedule has come: time, bar, tokens, length of the rows."""
    bar = "#" * int(30 * trainer.tokens / trainer.total)
    done = f"{trainer.tokens / 1e6:6.2f}/{trainer.total / 1e6:.0f} M tokens"
    return f"{seconds:6.0f} s [{bar:<30}] {done} · rows of {phase.length}"


def stop_between_steps() -> threading.Event:
    """An event that Ctrl-C or `kill` sets; the same a second time interrupts at once.

    Interrupted inside a step, the state would be that of half a step: one optimizer further than
    the other, and the resumed run not the one that was stopped.
    """
    stop = threading.Event()

    def asked(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked)
    return stop


def options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("name", choices=SHAPES)
    add("--out", type=Path, help="where the checkpoint goes (default data/NAME)")
    add("--state", type=Path, help="where the state is kept (default .train/NAME)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--scale", type=float, default=1.0, help="times the tokens of the schedule")
    add("--lr", type=float, default=2e-3)
    add("--threads", type=int, default=min(torch.get_num_threads(), n_cores()))
    add("--minutes", type=float, default=1e9, help="stop (resumable) after this long")
    add("--eager", action="store_true", help="do not compile: slower, needs no C++ compiler")
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    state, out = args.state or Path(".train") / args.name, args.out or Path("data") / args.name
    shipped = Path("data/town/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(shipped)) if shipped.exists() else train_tokenizer()
    if not shipped.exists():
        save(tokenizer, shipped.parent)
    trainer = Trainer(args.name, args.device, state, args.scale, args.lr, not args.eager)
    print(
        "resumed" if trainer.resume() else "from nothing",
        f"at {trainer.tokens / 1e6:.2f} M tokens;",
        f"{sum(p.numel() for p in trainer.model.parameters()) / 1e6:.2f} M parameters",
    )
    stop = stop_between_steps()
    run(trainer, Batches(tokenizer), save_every=3, minutes=args.minutes, stop=stop)
    if stop.is_set():
        raise SystemExit(
            f"stopped at {trainer.tokens / 1e6:.2f} M tokens; the same command goes on"
        )
    export(trainer, args.name, tokenizer, out, shards=2 if args.name == "town" else 1)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
