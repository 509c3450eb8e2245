"""One script and one style from the JavaScript files beside this one, without a build tool.

The files are plain ES modules, and a page could load them as they are; a widget and a page of one
file take one script. So each file becomes a function that gives back what it exports, in the order
in which they need each other. What they may contain is little, so that this stays short: imports of
one form, `export` before a function, class or const at line start, and styles as
`export const NAME_CSS = `…`;`, which go into the style and not into the script.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
# import { a, b as c } from "./run.js";   and   export { a, b } from "./run.js";
_TAKE = re.compile(r'^(import|export) \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
_STYLE = re.compile(r"^(?:export )?const \w+_CSS = `(.*?)`;\n", re.MULTILINE | re.DOTALL)


@cache
def script(entry: str = "widget.js") -> str:
    """The file `entry` and all it needs as one ES module.

    What `entry` declares and imports is at the top level, and its `export default` stays.

    >>> script("run.js").endswith("new Run({});")
    False
    """
    *needed, last = _needed(entry)
    return "\n".join([*map(_as_function, needed), _as_top_level(last)])


@cache
def style(entry: str = "widget.js") -> str:
    """view.css, and behind it the styles that the files carry."""
    texts = [path.read_text(encoding="utf-8") for path in _needed(entry)]
    sheets = [(FOLDER / "view.css").read_text(encoding="utf-8")]
    return "\n".join([*sheets, *(sheet for text in texts for sheet in _STYLE.findall(text))])


def _needed(entry: str) -> list[Path]:
    """`entry` last, before it the files it takes names from, each once."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in order:
            return
        text = (FOLDER / name).read_text(encoding="utf-8")
        for _, _, other in _TAKE.findall(text):
            visit(other)
        order[name] = None

    visit(entry)
    return [FOLDER / name for name in order]


def _parts(path: Path) -> tuple[str, list[str], list[str]]:
    """The body of a file; lines that give it what it takes; what it gives, as object entries."""
    text = _STYLE.sub("", path.read_text(encoding="utf-8"))
    takes, gives = [], [name for name in _EXPORT.findall(text)]
    for word, names, other in _TAKE.findall(text):
        if word == "import":
            takes.append(f"const {{{names.replace(' as ', ': ')}}} = {_variable(other)};")
        else:
            gives += [f"{name}: {_variable(other)}.{name}" for name in _split(names)]
    return _EXPORT.sub("", _TAKE.sub("", text)), takes, gives


def _as_function(path: Path) -> str:
    body, takes, gives = _parts(path)
    lines = [f"const {_variable(path.name)} = (() => {{", *takes, body]
    return "\n".join([*lines, f"return {{ {', '.join(gives)} }};", "})();"])


def _as_top_level(path: Path) -> str:
    body, takes, gives = _parts(path)
    imported = {name for take in takes for name in _split(take[7 : take.index("}")])}
    passed_on = [give.split(": ") for give in gives if ": " in give]
    more = [f"const {name} = {where};" for name, where in passed_on if name not in imported]
    return "\n".join([*takes, *more, body])


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _variable(file: str) -> str:
    return "$" + file.removesuffix(".js").replace(".", "_")
