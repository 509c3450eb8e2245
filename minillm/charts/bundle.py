"""One script from the JavaScript files beside this one, without a build tool.

The files are plain ES modules, and a page could load them as they are; a widget and a page of one
file take one script. So they are written one after the other, each before those that need it,
without `import` and `export`. So no two files may give one name at their top level, and an import
may not rename.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
_TAKE = re.compile(r'^(?:import|export) \{[^}]*\} from "\./([\w.]+)";\n', re.MULTILINE)


@cache
def script(entry: str = "widget.js") -> str:
    """The file `entry` and all it needs as one ES module; an `export default` stays."""
    order: dict[str, str] = {}

    def visit(name: str) -> None:
        text = (FOLDER / name).read_text(encoding="utf-8")
        for other in _TAKE.findall(text):
            if other not in order:
                visit(other)
        order[name] = _TAKE.sub("", text)

    visit(entry)
    return re.sub(r"^export (?!default)", "", "\n".join(order.values()), flags=re.MULTILINE)


def style() -> str:
    """The style of all views, and of a page of its own."""
    return (FOLDER / "view.css").read_text(encoding="utf-8")
