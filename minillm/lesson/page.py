"""What a lesson writes under a cell: HTML for a notebook, the same in plain text for elsewhere.

The HTML makes sense with every style taken away, as code hosts do: its structure is paragraphs,
tables, lists and <details>. Styles only space it out, in colours of the page, light or dark.
A verdict has a mark and a word and needs no colour; the colours of the course mean memory.
"""

from __future__ import annotations

import html
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.display import display

MARKS = {"right": "●", "not yet": "◐", "not attempted": "○", "unknown": "?"}
FAINT = "color:var(--jp-ui-font-color2,inherit)"
_RULE = "var(--jp-border-color1,#9AA3AF)"
_EDGE = {"right": "4px solid currentColor", "not yet": f"4px double {_RULE}"}


@dataclass(frozen=True)
class Note:
    """A piece of a page. A notebook shows `html`, everything else `text`."""

    html: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text

    def show(self) -> None:
        display(self)


def card(body: str, verdict: str = "") -> str:
    """A block with a line at its left; `verdict` goes into data-verdict and chooses the line."""
    data = f' data-verdict="{verdict}"' if verdict else ""
    edge = _EDGE.get(verdict, f"2px solid {_RULE}")
    style = f"border-left:{edge};padding:1px 0 1px 14px;margin:6px 0;max-width:46em;line-height:1.5"
    return f'<div class="minillm-note"{data} style="{style}">{body}</div>'


def paragraph(body: str, faint: bool = False) -> str:
    return f'<p style="margin:3px 0{";" + FAINT if faint else ""}">{body}</p>'


def rows(pairs: list[tuple[str, str]]) -> str:
    """A small table: a faint word on the left, what it is (HTML) on the right."""
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;font-size:inherit"
    lines = "".join(
        f'<tr style="background:none"><td align="left" style="{cell};{FAINT}">{name}</td>'
        f'<td align="left" style="{cell}">{value}</td></tr>'
        for name, value in pairs
    )
    return f'<table style="margin:3px 0;border:none;font-size:inherit">{lines}</table>'


def unfold(summary: str, body: str) -> str:
    """A line that unfolds to more. Both are HTML."""
    return (f'<details style="margin:3px 0"><summary style="cursor:pointer">{summary}</summary>'
            f'<div style="margin:2px 0 6px 1.1em">{body}</div></details>')  # fmt: skip


def recall(*pairs: tuple[str, str]) -> Note:
    """Questions, each with its answer folded away; as the last line of a cell it shows itself.

    `code` in backquotes is set as code. In plain text the answers come after all questions, so
    that nobody reads one by accident.

    >>> recall(("What moves once?", "The weights."), ("What moves for every token?", "Ids."))
    1. What moves once?
    2. What moves for every token?
    <BLANKLINE>
    Answers: 1. The weights. 2. Ids.
    """
    folded = "".join(
        unfold(f"{i}. {prose(question)}", paragraph(prose(answer)))
        for i, (question, answer) in enumerate(pairs, 1)
    )
    asked = "\n".join(f"{i}. {question}" for i, (question, _) in enumerate(pairs, 1))
    answers = " ".join(f"{i}. {answer}" for i, (_, answer) in enumerate(pairs, 1))
    return Note(card(folded), f"{asked}\n\nAnswers: {answers}")


def code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def prose(text: str) -> str:
    """Escaped text in which `code` is code, a line break is one, and an odd backquote stays."""
    marked = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))
    return marked.replace("\n", "<br>")


def link(path: Path) -> tuple[str, str]:
    """A file as a link (HTML) and as text, from the current folder; by its name if far away."""
    try:
        near = Path(os.path.relpath(path)).as_posix()
    except ValueError:  # on another drive
        near = ""
    if not near or near.startswith("../../.."):
        name = "/".join(path.parts[-3:])
        return code(name), name
    return f'<a href="{html.escape(near)}">{html.escape(near)}</a>', near
