"""What a lesson is made of: guesses, exercises, recall, sliders. For notebooks only.

    mine = guess("time per token", unit="ms")    a field for a number; shown at once
    reveal(mine, predicted=2.1, measured=2.6)    guess, prediction, measurement in one chart
    guesses()                                    this lesson's guesses, and how far they were
    compare({"cold": f, "warm": g}).sentence     which is faster, written from samples of both
    f = check("11.2", f)                         judges a function; gives back one that is right
    hint("11.2")                                 one hint more each time
    recall(("question", "answer"), …)            questions with answers to unfold
    progress()                                   what is solved so far; progress(reset=True)
    knob(draw, batch=(1, 64))                    sliders over a chart that `draw(batch=…)` returns

`guess`, `reveal`, `check` and `hint` show themselves where they are called; `guesses`, `recall`,
`progress` and `knob` are shown as the last line of a cell, as a chart is. Exercises are declared in
`notebooks/solutions/` with `exercise`, `Case` and `wrong`. `on_main` brings a widget's callback
to the kernel's main thread.
"""

from minillm.lesson.check import check, hint
from minillm.lesson.compare import Comparison, compare
from minillm.lesson.exercises import Case, exercise, wrong
from minillm.lesson.guess import Guess, guess, reveal
from minillm.lesson.guesses import guesses
from minillm.lesson.knob import Knob, knob
from minillm.lesson.on_main import on_main
from minillm.lesson.page import recall
from minillm.lesson.progress import progress

__all__ = [
    "Case", "Comparison", "Guess", "Knob", "check", "compare", "exercise", "guess", "guesses",
    "hint", "knob", "on_main", "progress", "recall", "reveal", "wrong",
]  # fmt: skip
