"""Laws of the page that plays a run: one file, no network, and nothing half-written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minillm.__main__ import main
from minillm.charts import bundle, live, replay
from minillm.charts.page import page
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import Event

EVIL = "</script><!--<script>alert(1)</script> \u2028 “Mía” & ]]>"


def make_run(prompt: str = "Mia") -> Trace:
    say = {"stage": "decode", "resource": "cpu", "label": "text", "request": 0}
    events = [
        Event("span", "tokenize", "tokens", "cpu", 0.0, 1e-3, detail=prompt, request=0, token=0),
        *(Event("span", "detokenize", start=2e-3 * (i + 1), seconds=1e-3, token=i,
                detail=f" {prompt}", **say) for i in range(5)),
    ]  # fmt: skip
    return Trace.of(events, {"model": "town", "machine": "2 cores <b>"})


class Parsed(HTMLParser):
    """The elements of a page, and the text of each."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attrs, text = self.found[-1]
            self.found[-1] = tag, attrs, text + data

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(attrs, text) for found, attrs, text in self.found if found == tag]


@pytest.mark.parametrize("prompt", ["Mia", EVIL])
def test_whatever_a_prompt_says_the_page_stays_whole(prompt: str) -> None:
    """Catches a text that ends the script element, and a title that is markup."""
    parsed = Parsed(page(make_run(prompt), live.VIEWS))
    (data, _), (code, _) = parsed.all("script")
    assert (data["type"], code["type"]) == ("application/json", "module")
    said = json.loads(parsed.all("script")[0][1])
    assert said["meta"]["model"] == "town" and said["views"] == list(live.VIEWS)
    assert [kind["detail"] for kind in said["columns"]["kinds"]] == [prompt, f" {prompt}"]
    assert len(said["columns"]["kind"]) == 6
    (_, title), (_, heading) = parsed.all("title")[0], parsed.all("h1")[0]
    assert title == heading and prompt[:50].split("\u2028")[0] in title
    assert not parsed.all("b") and len(parsed.all("meta")) == 3


def test_the_page_asks_nobody_for_anything() -> None:
    """Catches a font, a script or a picture from a server, and a policy that would allow it."""
    text = page(make_run(), live.VIEWS)
    addresses = set(re.findall(r"\w+://[^\s\"'`)\\]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "the name of SVG, which nobody fetches"
    asking = r"@import|url\((?!#|\$)|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\("
    assert not re.search(asking, text)
    parsed = Parsed(text)
    policy = next(a["content"] for a, _ in parsed.all("meta") if "http-equiv" in a)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    script = text.split('<script type="module">')[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'", "no other script may run, and this one may"
    assert "</script" not in script and "<!--" not in script
    assert parsed.all("link") == [({"rel": "icon", "href": "data:,"}, "\n")]
    assert text.startswith("<!doctype html>") and 'charset="utf-8"' in text[:80]


def test_the_command_writes_what_the_view_saves(tmp_path: Path, capsys) -> None:
    """Catches two ways that drift apart, and chatter on standard output."""
    run, by_command, by_view = (tmp_path / name for name in ("run.json", "a.html", "b.html"))
    make_run().save(run)
    assert main(["replay", str(run), "--html", str(by_command)]) == 0
    replay(run).save(by_view)
    assert by_command.read_text("utf-8") == by_view.read_text("utf-8")
    assert capsys.readouterr().err == ""
    assert {file.name for file in tmp_path.iterdir()} == {"run.json", "a.html", "b.html"}


BAD = {
    "missing": (None, "wanted a trace in"),
    "not JSON": ("weights", "what cannot be read"),
    "another JSON": ('{"traceEvents": []}', "no \"minillm trace 2\""),
    "empty": (Trace(), "found no span and no transfer"),
    "cut off": (make_run(), "what cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_run_is_told_in_one_line(name: str, tmp_path: Path, capsys) -> None:
    """Catches a traceback, or an empty page that looks like a run."""
    content, message = BAD[name]
    run, out = tmp_path / "run.json", tmp_path / "out.html"
    if isinstance(content, Trace):
        content.save(run)
        run.write_text(run.read_text()[: -40 if name == "cut off" else None])
    elif content is not None:
        run.write_text(content)
    assert main(["replay", str(run), "--html", str(out)]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not out.exists()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    """Catches half a page under the asked name, and a draft that stays behind."""
    view, old = replay(make_run()), tmp_path / "old.html"
    old.write_text("what was here before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        view.save(old)
    monkeypatch.undo()
    for target in (tmp_path / "no" / "folder.html", tmp_path):
        with pytest.raises(MinillmError, match="wanted to write a page to"):
            view.save(target)
    assert [file.name for file in tmp_path.iterdir()] == ["old.html"]
    assert old.read_text() == "what was here before"
    view.save(old)
    assert old.stat().st_mode & 0o777 == (tmp_path / "old.html").stat().st_mode & 0o777
    assert old.read_text("utf-8").startswith("<!doctype html>")


def test_a_view_that_still_runs_cannot_be_saved(tmp_path: Path) -> None:
    """Catches a page of half a run."""
    with pytest.raises(MinillmError, match="under way"):
        live.RunView(live.VIEWS, Trace()).save(tmp_path / "x.html")


@pytest.mark.parametrize("entry", ["widget.js", "page.js"])
def test_the_script_is_one_module_that_needs_nothing(entry: str, tmp_path: Path) -> None:
    """Catches an import that the browser cannot follow, and a file that no longer parses."""
    text = bundle.script(entry)
    assert not re.search(r"^\s*import\b", text, re.MULTILINE)
    exports = re.findall(r"^export \w+", text, re.MULTILINE)
    assert exports == (["export default"] if entry == "widget.js" else [])
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs node to parse the script")
    (tmp_path / "all.mjs").write_text(text, encoding="utf-8")
    check = [program, "--check", str(tmp_path / "all.mjs")]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("entry", ["widget.js", "page.js"])
def test_no_name_is_at_the_top_level_of_two_files(entry: str) -> None:
    """Catches a helper of one view that stands where another view has one of its name."""
    declared = r"^(?:export )?(?:async )?(?:function\*?|class|const|let) (\w+)"
    names = Counter(re.findall(declared, bundle.script(entry), re.MULTILINE))
    assert len(names) > 100 and not [name for name, n in names.items() if n > 1]
    renamed = re.compile(r"^(?:import|export) \{[^}]* as ", re.MULTILINE)
    for file in bundle.FOLDER.glob("*.js"):
        assert not renamed.search(file.read_text(encoding="utf-8")), file.name

