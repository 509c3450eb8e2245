"""check and hint: what a learner does with an exercise.

Both only show something and note it in the progress file. Whatever a learner hands in, the rest
of the notebook runs: `check` gives back a function that works.
"""

from __future__ import annotations

import html
from typing import Any

from minillm.errors import MinillmError
from minillm.lesson import exercises, page
from minillm.lesson.exercises import Exercise
from minillm.lesson.judge import NOT_ATTEMPTED, NOT_YET, RIGHT, UNKNOWN, Verdict, judge
from minillm.lesson.page import Note, card, code, paragraph, prose, rows, unfold
from minillm.lesson.progress import attempted, hinted, hints_seen


def check(number: str, function: Any = None) -> Any:
    """Judge a learner's function, show the verdict, and return a function that is right.

    That is `function` itself if it passes all cases, and else our solution, so that the cells
    below run either way. A function that raises NotImplementedError is "not attempted". Nothing
    is raised, whatever the function does; only the kernel's interrupt passes through. For a
    number that does not exist the verdict names those that do, and `function` comes back.

    >>> whole_parts = check("11.2", whole_parts)
    11.2 not yet: whole_parts(6, 4) gave 2, expected 1: 6 holds one whole 4.
    """
    number = str(number)  # 11.2 without its quotes
    try:
        exercise = exercises.find(number)
        verdict = judge(exercise, function)
    except Exception as error:  # no such exercise, or a fault of ours: neither stops a lesson
        _unknown(number, str(error)).show()
        return function
    if verdict.kind != NOT_ATTEMPTED:
        attempted(number, verdict.kind == RIGHT)
    verdict_note(exercise, verdict).show()
    return function if verdict.kind == RIGHT else exercise.reference


def hint(number: str) -> None:
    """Show one hint more than last time, below the earlier ones, which are folded.

    The last hint tells the way; after it, the place of the solution.
    `progress(reset=True)` starts again at the first.
    """
    number = str(number)  # 11.2 without its quotes
    try:
        exercise = exercises.find(number)
    except MinillmError as error:
        _unknown(number, str(error)).show()
        return
    seen = hints_seen(number)
    hints_note(exercise, seen).show()
    if seen < len(exercise.hints):
        hinted(number, seen + 1)


def verdict_note(exercise: Exercise, verdict: Verdict) -> Note:
    """The verdict as a page and as one line, such as "11.2 right"."""
    number, kind, name = exercise.number, verdict.kind, exercise.reference.__name__
    text = f"{number} {kind}" + (f": {verdict.why}" if kind == NOT_YET else "")
    cases = f"{verdict.passed} of {verdict.cases} cases" if verdict.passed else ""
    helps = code(f'hint("{number}")') + " helps"
    body = _headline(number, kind, cases)
    if kind == RIGHT:
        where = page.link(exercise.path)[0]
        body += paragraph(f"From here on the notebook uses your {code(name)}. Ours: {where}", True)
    elif kind == NOT_ATTEMPTED:
        help_line = f"Write {code(name)} above and run both cells again; {helps}."
        body += paragraph(f"{help_line} Until then the notebook uses ours.", True)
    else:
        body += _difference(verdict) + paragraph(prose(verdict.tip))
        body += paragraph(f"{helps}. Until it is right the notebook uses ours.", True)
    return Note(card(body, kind), text)


def hints_note(exercise: Exercise, seen: int) -> Note:
    """Hint `seen` + 1, after the ones before it; past the last, where the solution is."""
    number, hints = exercise.number, exercise.hints
    newest = min(seen, len(hints))
    folded = [
        unfold(f"hint {i + 1}", paragraph(prose(said))) for i, said in enumerate(hints[:newest])
    ]
    if newest < len(hints):
        title = f"hint {newest + 1} of {len(hints)}"
        body, text = prose(hints[newest]), hints[newest]
    else:
        href, where = page.link(exercise.path)
        title = f"all {len(hints)} hints given"
        body, text = f"The solution, and why people miss it: {href}", f"the solution is in {where}"
    shown = _headline(number, "", title) + "".join(folded) + paragraph(body)
    return Note(card(shown), f"{number} {title}: {text}")


def _headline(number: str, kind: str, more: str) -> str:
    mark = f"{page.MARKS[kind]}&ensp;" if kind else ""
    words = [f"<b>{mark}{html.escape(' '.join(filter(None, (number, kind))))}</b>"]
    words += [f'<span style="{page.FAINT}">{html.escape(more)}</span>'] if more else []
    return paragraph(" · ".join(words))


def _difference(verdict: Verdict) -> str:
    """The first call that went wrong, as a small table; nothing if it was never called."""
    if not verdict.called:
        return ""
    pairs = [("call", code(verdict.called)), ("yours", prose(verdict.came))]
    expected = f"<b>{html.escape(verdict.expected)}</b>"
    return rows([*pairs, ("expected", expected), ("because", prose(verdict.because))])


def _unknown(number: str, why: str) -> Note:
    body = _headline(number, UNKNOWN, "") + paragraph(html.escape(why))
    return Note(card(body, UNKNOWN), f"{number} {UNKNOWN}: {why}")
