"""Recall: questions at the end of a lesson, with answers to unfold."""

from __future__ import annotations

from minillm.lesson.page import Note, card, paragraph, prose, unfold


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
