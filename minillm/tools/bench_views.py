"""What live views cost: the same decode with and without them, in a real notebook kernel.

    python -m minillm bench views --rounds 20

The kernel sends what it would send to JupyterLab, to a reader that throws it away; what a browser
spends on drawing is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

from minillm.errors import MinillmError
from minillm.tools.bench import Progress, rounds

LIMIT = 0.02  # of the run that the views show
TOKENS = 240
# Runs in the kernel. A round is one decode each way; which comes first changes from round to round.
# The clock covers the decode and the views' work beside it, not the drawing of the still behind it.
_SETUP = """
import json, time
from minillm import Engine, SamplingParams
from minillm.charts import watch
engine = Engine.load({model!r})
params = SamplingParams(max_tokens={tokens}, temperature=0.0, ignore_eos=True)

def decode():
    time.sleep(0.1)  # until the page has the view: that happens once, however long the run
    engine.trace.clear()
    began = time.perf_counter()
    for piece in engine.stream("Mia put the red key", params):
        pass
    return time.perf_counter() - began

def watched():
    with watch(engine.trace) as view:
        seconds = decode()
    return seconds, view.spent

ways = [decode, watched]
def measure():
    ways.reverse()
    found = {{way.__name__: way() for way in ways}}
    print(json.dumps([found["decode"], *found["watched"]]))
"""
Round = tuple[float, float, float]  # seconds without views, with them, and of the views' thread


def cost(found: Sequence[Round]) -> str:
    """What live views add to a decode, and whether that is under LIMIT: as far as rounds agree."""
    shares = [watched / without - 1 for without, watched, _ in found]
    middle, unsure = median(shares), max(shares) - min(shares)
    if len(shares) >= 4:  # how far a median may be off: 1.57 × the middle half over the root of n
        low, _, high = quantiles(shares, n=4)
        unsure = 1.57 * (high - low) / len(shares) ** 0.5
    verdict = f"under {LIMIT:.0%}" if middle + unsure < LIMIT else f"NOT surely under {LIMIT:.0%}"
    if len(shares) < 4 or unsure > LIMIT:
        verdict = f"too noisy to say whether under {LIMIT:.0%}: take more rounds"
    sending = median(spent / without for without, _, spent in found)
    return (
        f"{TOKENS} tokens in {median(each[0] for each in found):.2f} s, {len(found)} rounds\n"
        f"live views cost {middle:+.1%} ± {unsure:.1%} of the run: {verdict}\n"
        f"their own thread takes {sending:.1%} of the run"
    )


def bench(model: str, number: int, progress: Progress) -> str:
    """Measure in a kernel of its own. Raises MinillmError if that cannot start or fails."""
    try:
        from jupyter_client.manager import start_new_kernel
    except ImportError as error:
        raise MinillmError(
            f"wanted jupyter_client, which starts notebook kernels, found {error}; "
            "pip install -r requirements.txt"
        ) from error
    manager, client = start_new_kernel()
    try:
        _run(client, _SETUP.format(model=model, tokens=TOKENS))
        both = {"both": lambda: json.loads(_run(client, "measure()"))}
        return cost(rounds(both, number, progress)["both"])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _run(client: Any, code: str) -> str:
    """Run code in the kernel; what it prints. All it sends to a page is read, and dropped."""
    printed = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=600)["content"]
    if reply["status"] != "ok":
        raise MinillmError(
            f"wanted a decode in a notebook kernel, found {reply.get('ename')}: "
            f"{reply.get('evalue')}; run it in a notebook to see more"
        )
    return "".join(printed)
