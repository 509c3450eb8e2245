"""The course's glossary as questions and answers, a part of the corpus of `data/town`.

A few million parameters learn it by heart, so it is short and regular: every answer restates the
subject of its question first, words are plain and return often, no number depends on hardware.

>>> FACTS[0].questions[0], FACTS[0].answer
('What does HBM stand for?', 'HBM stands for high-bandwidth memory.')

Run `python data/build/glossary.py` to check the rules and print the counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One answer sentence and the wordings of the question that it answers."""

    questions: tuple[str, ...]
    answer: str


def _ask(first: str, second: str, third: str, answer: str) -> Fact:
    return Fact((first + "?", second + "?", third + "?"), answer + ".")


def _short(name: str, full: str) -> Fact:
    return _ask(f"What does {name} stand for", f"What is the meaning of {name}",
                f"What is {name} short for", f"{name} stands for {full}")


def _what(subject: str, rest: str, verb: str = "is") -> Fact:
    return _ask(f"What {verb} {subject}", f"What is meant by {subject}",
                f"Can you tell me what {subject} {verb}",
                f"{subject[0].upper()}{subject[1:]} {verb} {rest}")


def _does(subject: str, rest: str) -> Fact:
    return _ask(f"What does {subject} do", f"What is the job of {subject}",
                f"Can you tell me what {subject} does", f"{subject[0].upper()}{subject[1:]} {rest}")


def _why(verb: str, subject: str, rest: str, reason: str) -> Fact:
    """`verb` is "is", "are" or "can": the word that moves in front of the subject in a question."""
    return _ask(f"Why {verb} {subject} {rest}", f"For what reason {verb} {subject} {rest}",
                f"Can you tell me why {subject} {verb} {rest}",
                f"{subject[0].upper()}{subject[1:]} {verb} {rest} {reason}")


def _bytes(subject: str, amount: str) -> Fact:
    return _ask(f"How many bytes does {subject} take", f"How much memory does {subject} take",
                f"What is the size of {subject}",
                f"{subject[0].upper()}{subject[1:]} takes {amount} of memory")


def _stage(number: int, does: str) -> Fact:
    return _ask(f"Which stage {does}", f"What is the stage that {does}",
                f"Can you name the stage that {does}",
                f"The stage that {does} is stage {number}, {STAGES[number - 1]}")


def _number(number: int, rest: str) -> Fact:
    return _ask(f"What is stage {number}", f"What is the name of stage {number}",
                f"What happens in stage {number}",
                f"Stage {number} is {STAGES[number - 1]}: {rest}")


STAGES = ("load", "tokens", "model", "parallel", "decode")

_SHORT = (
    _short("HBM", "high-bandwidth memory"),
    _short("DRAM", "dynamic random-access memory"),
    _short("SSD", "solid-state drive"),
    _short("GPU", "graphics processing unit"),
    _short("DMA", "direct memory access"),
    _short("BPE", "byte pair encoding"),
    _short("BOS", "beginning of sequence"),
    _short("EOS", "end of sequence"),
    _short("KV", "key and value"),
    _short("FFN", "feed-forward network"),
    _short("GQA", "grouped-query attention"),
    _short("RoPE", "rotary position embedding"),
    _short("FLOP", "floating-point operation"),
    _short("NIC", "network interface card"),
    _short("TTFT", "time to first token"),
    _short("TPOT", "time per output token"),
)

_STAGES = (
    _ask("How many stages are there in the course", "What are the names of all the stages",
         "Can you name all the stages",
         "There are five stages: load, tokens, model, parallel and decode"),
    _number(1, "weights go from SSD to DRAM to HBM"),
    _number(2, "the CPU turns text into ids"),
    _number(3, "attention and FFN run from HBM"),
    _number(4, "ranks send data to each other"),
    _number(5, "the next token is picked and turned into text"),
    _stage(1, "reads the weights"),
    _stage(2, "tokenizes the prompt"),
    _stage(3, "runs attention"),
    _stage(3, "runs the FFN"),
    _stage(3, "fills the KV cache"),
    _stage(4, "runs the all-reduce"),
    _stage(4, "sends data over NVLink"),
    _stage(5, "picks the next token"),
    _stage(5, "detokenizes the answer"),
    _stage(5, "looks for stop strings"),
)

_LOAD = (
    _ask("Where do weights wait on the way to HBM", "On the way to HBM, where do weights wait",
         "In which memory do weights wait before HBM",
         "On the way to HBM, weights wait in DRAM"),
    _ask("Where are weights kept when the machine is off",
         "When the machine is off, where are the weights",
         "Which tier keeps the weights when the machine is off",
         "When the machine is off, weights are kept on SSD"),
    _ask("Which memory tier is the fastest", "What is the fastest memory tier",
         "Can you name the fastest memory tier", "The fastest memory tier is HBM, next to the GPU"),
    _ask("Which memory tier is the slowest", "What is the slowest memory tier",
         "Can you name the slowest memory tier", "The slowest memory tier of all is SSD"),
    _ask("Which link do bytes take from DRAM to HBM", "How do bytes go from DRAM to HBM",
         "Over which link do bytes go from DRAM to HBM",
         "From DRAM to HBM, bytes go over the PCIe link"),
    _what("the PCIe link", "the link between the CPU and the GPU"),
    _what("bandwidth", "the number of bytes moved in a second"),
    _what("a checkpoint", "the saved weights of a model with its config"),
    _what("a tensor", "a block of numbers with a shape and a type"),
    _what("a shard", "one part of the weights, such as one file of many"),
    _does("the index of a checkpoint", "tells which shard holds each tensor"),
    _does("the safetensors header", "tells the name, type, shape and place of each tensor"),
    _ask("What do the first eight bytes of a safetensors file tell",
         "What is in the first eight bytes of a safetensors file",
         "Why do we read the first eight bytes of a safetensors file",
         "The first eight bytes of a safetensors file tell the size of its header"),
    _what("the page cache", "the part of DRAM that keeps the bytes of files read before"),
    _why("is", "the second load", "faster", "because the page cache still holds the file"),
    _what("a cold read", "a read from SSD of bytes that are not in the page cache"),
    _what("a warm read", "a read of bytes that are already in the page cache"),
    _does("the mmap call", "shows a file as memory and reads its pages when they are used"),
    _does("O_DIRECT", "reads a file from SSD without the page cache"),
    _what("pinned memory", "DRAM that the system may not move"),
    _why("is", "pinned memory", "used", "because DMA can copy from it on its own"),
    _does("a DMA engine", "copies bytes while the CPU does other work"),
    _does("a prefetch", "reads the next bytes before they are needed"),
    _what("a staging buffer", "a small block of DRAM where bytes wait for the next copy"),
    _what("overlap", "the running of a copy and compute at the same time"),
    _what("the trace", "the record of every byte moved and every second of work"),
)

_TOKENS = (
    _what("a token", "a piece of text with its own id"),
    _what("an id", "the number of a token in the vocabulary"),
    _what("the vocabulary", "the list of all tokens that a model knows"),
    _does("the tokenizer", "turns text into ids and ids into text"),
    _does("the training of BPE", "joins the most common pair of tokens again and again"),
    _why("can", "byte-level BPE", "write any text", "because any text is made of bytes"),
    _what("UTF-8", "a code that writes a character as one to four bytes"),
    _does("padding", "adds empty tokens so that all rows of a batch have the same length"),
    _does("packing", "puts texts one after another without padding"),
    _what("a batch", "a group of requests that the model runs together"),
    _ask("What does the BOS token mark", "What is the BOS token used for",
         "Where in a text is the BOS token", "The BOS token marks the start of a text"),
    _ask("What does the EOS token mark", "What is the EOS token used for",
         "Where in a text is the EOS token", "The EOS token marks the end of a text"),
    _ask("How do ids get to the GPU", "Which way do ids go to the GPU",
         "Through what do ids go to the GPU",
         "On the way to the GPU, ids go through a staging buffer in DRAM"),
    _what("the context length", "the largest number of tokens that the model can look at"),
)

_MODEL = (
    _what("an embedding", "the vector of numbers that stands for one token"),
    _what("a layer", "one attention block and one FFN block"),
    _does("attention", "lets each token look at the tokens before it"),
    _what("a query in attention", "the vector that says what a token looks for"),
    _what("a key in attention", "the vector that a query is compared with"),
    _what("a value in attention", "the vector that a token gives to the sum"),
    _what("an attention head", "one of several attentions that run side by side"),
    _does("the causal mask", "hides the tokens that come later"),
    _does("GQA", "lets several query heads share one key and value head"),
    _why("is", "GQA", "used", "because it makes the KV cache smaller"),
    _does("RoPE", "turns queries and keys by an angle that grows with the position"),
    _does("RMSNorm", "divides a vector by its root mean square"),
    _what("SwiGLU", "an FFN where one part is a gate for the other"),
    _does("the FFN block", "works on each token alone, after attention"),
    _does("the softmax", "turns scores into chances that add up to one"),
    _what("logits", "the scores of all tokens for the next place", "are"),
    _does("prefill", "runs the whole prompt and fills the KV cache"),
    _does("decode", "makes the answer one token at a time"),
    _ask("What does a decode step read from HBM", "Which bytes does a decode step read from HBM",
         "What must a decode step read from HBM",
         "From HBM, a decode step reads all the weights and the KV cache"),
    _what("arithmetic intensity", "the number of FLOPs done for each byte moved"),
    _what("the roofline", "a chart of the best speed for each arithmetic intensity"),
    _what("a memory-bound task", "a task that is limited by how fast bytes are read"),
    _what("a compute-bound task", "a task that is limited by how fast FLOPs are done"),
    _why("is", "decode", "memory-bound", "because it reads all the weights for a few tokens"),
    _why("is", "prefill", "compute-bound", "because it uses each weight for many tokens"),
    _does("a GEMM", "multiplies a matrix by a matrix"),
    _does("a GEMV", "multiplies a matrix by a vector"),
    _does("quantization", "keeps numbers in fewer bits"),
    _bytes("an int8 weight", "one byte"),
    _bytes("an int4 weight", "half a byte"),
    _bytes("a bf16 weight", "two bytes"),
    _ask("Why does quantization make decode faster", "How does quantization make decode faster",
         "Can you tell me why quantization makes decode faster",
         "With quantization, decode is faster because fewer bytes are read from HBM"),
    _ask("What can be lost with quantization", "What is the price of quantization",
         "What is bad about quantization", "With quantization, some quality can be lost"),
)

_KV = (
    _what("the KV cache", "the store of the keys and values of earlier tokens"),
    _why("is", "the KV cache", "needed", "because without it old keys and values are made again"),
    _ask("Where does the KV cache live", "In which memory is the KV cache",
         "Which tier holds the KV cache", "While the model runs, the KV cache lives in HBM"),
    _ask("How does the KV cache grow", "When does the KV cache grow",
         "What makes the KV cache grow", "With every token, the KV cache grows by the same size"),
    _ask("Where does the KV cache go when HBM is full",
         "When HBM is full, where does the KV cache go",
         "Where can the KV cache move when HBM is full",
         "When HBM is full, the KV cache can move to DRAM or SSD"),
    _what("a KV page", "a block of the KV cache for a fixed number of tokens"),
    _does("the block table", "tells which pages hold the tokens of a request"),
    _what("fragmentation", "memory that is lost because no request can use it"),
    _why("are", "KV pages", "used", "because they keep fragmentation small"),
    _does("the prefix cache", "keeps the KV pages of a prompt for others with the same start"),
    _does("an offload", "moves bytes from HBM to DRAM or SSD"),
    _does("an eviction", "takes old pages out of a cache to make room"),
)

_PARALLEL = (
    _what("a rank", "one process in a group that works together"),
    _what("the world size", "the number of ranks in the group"),
    _what("a node", "one server with its own GPUs"),
    _what("NVLink", "a fast link between GPUs inside a node"),
    _what("InfiniBand", "a fast network between nodes"),
    _does("a NIC", "joins a node to the network"),
    _does("NCCL", "moves data between ranks on GPUs"),
    _does("Gloo", "moves data between ranks on CPUs"),
    _what("a collective", "an operation that all ranks do together"),
    _does("an all-reduce", "adds the data of all ranks and gives the sum to every rank"),
    _does("an all-gather", "joins the parts of all ranks and gives the whole to every rank"),
    _does("a reduce-scatter", "adds the data of all ranks and gives each rank one part of the sum"),
    _does("a broadcast", "sends the data of one rank to all ranks"),
    _ask("In a ring, where does each rank send", "To which rank does each rank send in a ring",
         "How do ranks send data in a ring", "In a ring, each rank sends only to the next rank"),
    _ask("What are the two parts of a ring all-reduce", "What is a ring all-reduce made of",
         "Of which two parts is a ring all-reduce made",
         "A ring all-reduce is made of a reduce-scatter and an all-gather"),
    _does("tensor parallel", "splits each layer over the ranks"),
    _does("pipeline parallel", "gives each rank some of the layers"),
    _ask("How many all-reduces does a layer need with tensor parallel",
         "How many all-reduces are in a layer with tensor parallel",
         "With tensor parallel, how many all-reduces are in a layer",
         "With tensor parallel, a layer needs two all-reduces, after attention and after the FFN"),
    _what("a pipeline bubble", "the time when a rank in a pipeline has no work"),
    _does("the alpha-beta model", "gives a message a fixed time plus a time for each byte"),
    _what("bus bandwidth", "the speed of a collective, scaled to compare it with its link"),
)

_DECODE = (
    _does("sampling", "picks the next token by chance from the scores"),
    _does("greedy decoding", "picks the token with the highest score every time"),
    _does("the temperature", "divides the logits before the softmax"),
    _ask("What does a high temperature give", "What is the text like at a high temperature",
         "What do we get from a high temperature", "At a high temperature, text is more random"),
    _ask("What is sampling at temperature zero", "What happens at temperature zero",
         "What does temperature zero mean", "At temperature zero, sampling is the same as greedy"),
    _does("the top-k rule", "keeps only the k tokens with the highest scores"),
    _does("the top-p rule", "keeps the fewest tokens whose chances add up to at least p"),
    _does("the min-p rule", "drops tokens whose chance is small next to the best one"),
    _does("a seed", "makes the same random picks come again in the next run"),
    _does("a stop string", "ends the answer when it comes up in the text"),
    _does("detokenization", "turns ids back into text"),
    _does("speculative decoding", "lets a small model guess tokens and a large model check them"),
    _what("a draft model", "the small model that guesses the next tokens"),
    _what("the acceptance rate", "the share of guesses that the large model keeps"),
)

_ENGINE = (
    _ask("What does TTFT measure", "Which time is measured by TTFT", "Which time does TTFT show",
         "TTFT measures the time from the request to the first token"),
    _ask("What does TPOT measure", "Which time is measured by TPOT", "Which time does TPOT show",
         "TPOT measures the mean time of each token after the first"),
    _what("latency", "the time that one request has to wait"),
    _what("throughput", "the number of tokens made in a second"),
    _what("goodput", "the number of requests in a second that are done in time"),
    _does("continuous batching", "lets requests join and leave the batch at every step"),
    _does("chunked prefill", "splits a long prompt into parts that run between decode steps"),
    _does("the scheduler", "picks the requests that run in the next step"),
)

FACTS: tuple[Fact, ...] = (
    *_SHORT, *_STAGES, *_LOAD, *_TOKENS, *_MODEL, *_KV, *_PARALLEL, *_DECODE, *_ENGINE
)


# Words that do not tell one question from another; "meant" and "meaning" ask the same thing.
_COMMON = frozenset("a an the is are of by in to and what can you tell me meant meaning".split())


def _content(question: str) -> frozenset[str]:
    """The words that carry a question, singular: equal sets would ask for the same answer."""
    words = (word.rstrip("?,") for word in question.lower().split())
    return frozenset(re.sub(r"(?<=\w\w)e?s$", "", word) for word in words if word not in _COMMON)


def check(facts: tuple[Fact, ...] = FACTS) -> list[str]:
    """What is wrong with the facts, one line each; empty when all the rules hold."""
    wrong: list[str] = []
    if not 150 <= len(facts) <= 160:
        wrong.append(f"wanted 150 to 160 facts, found {len(facts)}")
    owner: dict[frozenset[str], Fact] = {}
    for fact in facts:
        text = " ".join((*fact.questions, fact.answer))
        size = len(fact.answer.split())
        if len(set(fact.questions)) != 3 or not text.isascii():
            wrong.append(f"three different wordings in ASCII: {text}")
        if not 5 <= size <= 20 or not fact.answer.endswith(".") or fact.answer.count(".") != 1:
            wrong.append(f"one sentence of 5 to 20 words, found {size}: {fact.answer}")
        for question in fact.questions:
            if not question.endswith("?") or len(question.split()) > 16:
                wrong.append(f"a question of at most 16 words: {question}")
            if owner.setdefault(_content(question), fact) is not fact:
                wrong.append(f"two facts share: {question}")
    if len({fact.answer for fact in facts}) != len(facts):
        wrong.append("two facts share an answer")
    return wrong


def main() -> int:
    """Print what is wrong and the counts; 1 when anything is wrong."""
    problems = check()
    print("\n".join(problems), end="\n" if problems else "")
    text = " ".join(part for fact in FACTS for part in (*fact.questions, fact.answer))
    words = re.findall(r"[a-z0-9_'-]+", text.lower())
    questions = sum(len(fact.questions) for fact in FACTS)
    mean = sum(len(fact.answer.split()) for fact in FACTS) / len(FACTS)
    print(f"{len(FACTS)} facts, {questions} questions, {len(set(words))} distinct words of "
          f"{len(words)}, {mean:.1f} words an answer")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
