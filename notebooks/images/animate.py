"""Film the machine diagram for the README: `python notebooks/images/animate.py`.

data/town is loaded and answers a question; the saved page of that run is played in headless
Chromium (the one that tests/browser finds), and machine.webp is what could be seen there.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from minillm import Engine, EngineConfig, Machine, SamplingParams
from minillm.charts import replay
from minillm.files import temporary_folder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.browser.conftest import CHROMIUM_FLAGS, find_chromium  # noqa: E402

WIDE, EVERY = 880, 0.33  # pixels; seconds from frame to frame, at least
LONGEST = 40  # seconds of film
PROMPT = "What does HBM stand for?"


def saved_run(folder: Path) -> Path:
    """A load and one short request, as a page."""
    machine = Machine.here(hbm="64 MiB")
    engine = Engine.load("data/town", machine, EngineConfig(reader="direct"))  # from the SSD itself
    engine.generate(PROMPT, SamplingParams(max_tokens=16, temperature=0.0, stop="\n"))
    file = folder / "run.html"
    replay(engine.trace).save(file)
    return file


def film(page) -> tuple[list[Image.Image], list[int]]:
    """Frames, and the milliseconds for which each is shown; the last one stays for 4 s."""
    machine, slider = page.locator(".minillm-machine").first, page.locator("input[type=range]")
    page.locator(".minillm").press("Home")
    page.locator(".minillm-play").click()
    frames, times = [], [time.monotonic()]
    while times[-1] - times[0] < LONGEST:
        frames.append(Image.open(io.BytesIO(machine.screenshot())).convert("RGB"))
        time.sleep(max(0.0, times[-1] + EVERY - time.monotonic()))
        times.append(time.monotonic())
        if float(slider.input_value()) >= float(slider.get_attribute("max")):
            break
    frames.append(Image.open(io.BytesIO(machine.screenshot())).convert("RGB"))
    lasting = [round(1000 * (b - a)) for a, b in zip(times, times[1:], strict=False)]
    return frames, [*lasting, 4000]


def main() -> None:
    with temporary_folder() as folder, sync_playwright() as playwright:
        file = saved_run(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=find_chromium(playwright), args=CHROMIUM_FLAGS
        )
        page = browser.new_page(viewport={"width": WIDE, "height": 1200})
        page.goto(file.as_uri())
        frames, lasting = film(page)
        browser.close()
    first, *rest = frames
    first.save(HERE / "machine.webp", save_all=True, append_images=rest, duration=lasting, loop=0,
               quality=70, method=4)  # fmt: skip
    size = (HERE / "machine.webp").stat().st_size
    print(f"{len(frames)} frames, {sum(lasting) / 1000:.0f} s, {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
