"""How the engine runs a model (EngineConfig), over how many ranks (ParallelConfig), and how words
are chosen (SamplingParams)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minillm.config import rules
from minillm.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model.

    dtype: of the weights and the KV cache in memory; "auto" takes the checkpoint's.
    max_context: tokens of prompt and answer together; None takes the model's.
    max_batch_tokens: tokens that one forward pass takes, of all requests together: longer prompts
    are read in chunks, which bounds activation memory and how long others wait.
    max_running: requests that run at once; the others wait.
    kv: "paged", or "contiguous": a block for each request, as long as the context.
    page_size: tokens of a page of the KV cache.
    prefix_cache: whether requests that begin alike share the pages of what they share. With
    `kv_hbm`, pages of texts that have ended stay known as well, until others need their room.
    kernels: "auto", C compiled on this machine where it can be and is faster; or "torch".
    kv_hbm: HBM for the KV cache, such as "32 MiB"; None takes what the requests can need;
    on several ranks, at most half.
    kv_dram, kv_ssd: DRAM, and SSD in `ssd_dir`, for pages that HBM has no room for; with kv_hbm.
    ssd_dir: a folder; None takes this one, or another on a disk that takes files.
    reader: how weights are read from SSD: "read" (through the page cache), "mmap" or "direct"
    (past it); see `minillm.load.readers`.
    weights: "resident", all of them in HBM, or "stream": each layer is brought to HBM when its
    turn comes, so that a model larger than HBM runs.
    stream_from: where streamed layers wait: "dram", "ssd", or "auto": in DRAM if they fit.
    log: a file that gets a line of JSON for each request; see `minillm.engine.log`.
    """

    dtype: str = "auto"
    max_context: int | None = None
    max_batch_tokens: int = 512
    max_running: int = 64
    kv: str = "paged"
    page_size: int = 16
    prefix_cache: bool = True
    kv_hbm: int | str | None = None
    kv_dram: int | str | None = None
    kv_ssd: int | str | None = None
    ssd_dir: str | None = None
    kernels: str = "auto"
    reader: str = "read"
    weights: str = "resident"
    stream_from: str = "auto"
    log: str | None = None

    def __post_init__(self) -> None:
        one_of, size = rules.one_of, rules.BYTES_OR_NONE
        rules.check(
            self, dtype=one_of("auto", *rules.DTYPES), max_context=rules.SIZE_OR_NONE,
            max_batch_tokens=rules.COUNT, max_running=rules.COUNT, kv=one_of("paged", "contiguous"),
            page_size=rules.SIZE, prefix_cache=rules.FLAG, kernels=one_of("auto", "torch"),
            kv_hbm=size, kv_dram=size, kv_ssd=size, reader=one_of("read", "mmap", "direct"),
            weights=one_of("resident", "stream"), stream_from=one_of("auto", "dram", "ssd"),
            log=(lambda v: v is None or (isinstance(v, str) and v), "the name of a file, or None"),
        )  # fmt: skip
        if (self.kv_dram or self.kv_ssd) and (self.kv_hbm is None or self.kv != "paged"):
            raise ConfigError(
                f"wanted kv_hbm and pages beside kv_dram or kv_ssd, found kv_hbm={self.kv_hbm} and "
                f"kv={self.kv!r}; say how much HBM the pages have"
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How a model is split over tp · pp ranks.

    tp: ranks that share each layer; pp: stages, each with some of the layers. A stage's ranks are
    neighbours. nodes: machines that the ranks are spread over, equally many on each.
    timeout: seconds that a rank waits in the middle of a pass for one that does not answer.
    weights: "own", each rank reads its slices; "broadcast", rank 0 reads all and sends it to all.
    micro_batches: that a pass is cut into, so that stages work at once; None takes as many as
    stages where the pass has tokens enough.
    """

    tp: int = 1
    pp: int = 1
    nodes: int = 1
    timeout: float = 60.0
    weights: str = "own"
    micro_batches: int | None = None

    def __post_init__(self) -> None:
        rules.check(
            self, tp=rules.COUNT, pp=rules.COUNT, nodes=rules.COUNT, timeout=rules.POSITIVE,
            weights=rules.one_of("own", "broadcast"), micro_batches=rules.SIZE_OR_NONE,
        )  # fmt: skip


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    temperature: 0 always takes the most likely token (greedy); 1 samples as the model says.
    top_k, top_p, min_p: keep the k likeliest tokens; the likeliest that together reach p; those
    at least min_p times as likely as the likeliest. 0, 1.0 and 0.0 switch them off.
    repetition_penalty: above 1 makes what prompt or answer hold less likely, below 1 more; 1 is
    off. presence_penalty, frequency_penalty: taken off the logit of what the answer holds, once or
    each time it came. logit_bias: what is added to the logits of some ids, as in {42: -100}.
    seed: of this request's own random generator; None draws a fresh one.
    logprobs: of how many of the likeliest tokens the log-probabilities are told, beside the
    chosen one's.
    stop: a text, or several, before which the answer ends. ignore_eos: go on to max_tokens.

    >>> SamplingParams(stop="\\n").stop
    ('\\n',)
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int = 0
    stop: str | tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, (str, list)):
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            object.__setattr__(self, "stop", stop)
        if isinstance(self.logit_bias, Mapping):  # pairs, so that settings stay as they are
            object.__setattr__(self, "logit_bias", tuple(self.logit_bias.items()))
        is_int, is_number = rules.is_int, rules.is_number
        rules.check(
            self,
            max_tokens=rules.COUNT,
            temperature=(lambda v: is_number(v) and v >= 0, "a number >= 0"),
            top_k=(lambda v: is_int(v) and v >= 0, "an int >= 0"),
            top_p=(lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
            min_p=(lambda v: is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
            repetition_penalty=rules.between(0.01, 100),
            presence_penalty=rules.between(-2, 2), frequency_penalty=rules.between(-2, 2),
            logit_bias=(_are_biases, "a dict of token ids and numbers from -100 to 100"),
            logprobs=(lambda v: is_int(v) and v >= 0, "an int >= 0"),
            seed=(lambda v: v is None or is_int(v), "an int, or None"),
            stop=(_are_texts, "texts that are not empty"),
            ignore_eos=rules.FLAG,
        )  # fmt: skip


def _are_texts(stop: object) -> bool:
    return isinstance(stop, tuple) and all(isinstance(text, str) and text for text in stop)


def _are_biases(pairs: object) -> bool:
    bias, is_pair = rules.between(-100, 100)[0], lambda v: isinstance(v, tuple) and len(v) == 2
    fine = isinstance(pairs, tuple) and all(map(is_pair, pairs))
    return fine and all(rules.is_int(id) and id >= 0 and bias(by) for id, by in pairs)
