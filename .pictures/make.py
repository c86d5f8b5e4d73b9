"""Make the pictures of the pages from the bundled photographs, beside this file or in another folder.

    python .pictures/make.py [FOLDER]

idea.jpg has caption, heat maps, regions and the viewer of one photograph in one row; inspect.jpg the viewer's first
page. The bundled model `photo` makes the regions, and Chromium shows the viewer.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import phrasebox
from phrasebox.pipeline.commands.demo import SCALES
from phrasebox.pipeline.dataset import Dataset
from phrasebox.pipeline.demo.photographs import CAPTIONS, FOLDER, INPUT

PHOTOGRAPH = "riders"
CAPTION = 4  # of its five
COLOURS = ("#c2410c", "#1d4ed8", "#15803d")
PORT = 8791

DRAW_ALL = """
const slider = document.querySelector('input[type=range]');
slider.value = 0;
slider.dispatchEvent(new Event('input', {bubbles: true}));
slider.dispatchEvent(new Event('change', {bubbles: true}));
document.getElementById('small').click();
"""

PAGE = """
<style>
body {{ margin: 0; padding: 18px; width: 1800px; font: 22px/1.45 sans-serif; background: white; color: #1c1917 }}
main {{ display: flex; gap: 14px; align-items: center }}
section {{ flex: 1 }} section.wide {{ flex: 1.45 }}
h2 {{ font-size: 21px; margin: 0 0 10px; font-weight: 600; color: #57534e }}
img {{ width: 100%; display: block; border-radius: 6px }}
.maps img {{ margin-bottom: 8px }} .maps p {{ margin: 0; font-size: 17px }} .maps img {{ width: 82% }}
.arrow {{ flex: 0; font-size: 44px; color: #a8a29e }}
mark {{ background: none; font-weight: 600; border-bottom: 3px solid; padding: 0 1px }}
.viewer img {{ border: 1px solid #d6d3d1 }}
</style>
<main>
<section><h2>1. captioned image</h2><img src="{photo}"><p>{caption}</p></section><div class="arrow">&rarr;</div>
<section class="maps" style="flex: .62"><h2>2. heat maps</h2>{maps}</section><div class="arrow">&rarr;</div>
<section><h2>3. boxes, masks, scores</h2><img src="{regions}"></section><div class="arrow">&rarr;</div>
<section class="wide viewer"><h2>4. a dataset to look at, export, train on</h2><img src="{viewer}"></section>
</main>
"""


def as_source(image: Image.Image) -> str:
    """An image for the `src` of a page."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def answers(url: str) -> bool:
    """Return whether a server answers at a URL."""
    try:
        urllib.request.urlopen(url, timeout=9).close()
    except OSError:
        return False
    return True


def screenshot(
    browser: Browser, dataset: Dataset, address: str, width: int, script: str = "0"
) -> Image.Image:
    """Return a page of the viewer, after a script."""
    command = [
        sys.executable,
        "-m",
        "phrasebox",
        "inspect",
        str(dataset.path),
        "--port",
        str(PORT),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not answers(f"http://127.0.0.1:{PORT}/"):
            if server.poll() is not None:
                raise SystemExit("the viewer did not start")
            time.sleep(0.5)
        page = browser.new_page(viewport={"width": width, "height": round(width * 0.77)})
        page.goto(f"http://127.0.0.1:{PORT}/{address}")
        page.wait_for_selector("input[type=range]", timeout=120_000)
        page.wait_for_timeout(3000)  # images below the page are loaded when they come into view
        page.evaluate(script)
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    finally:
        server.terminate()
        server.wait()


def main(out: Path = Path(__file__).parent) -> None:
    """Make the pictures in a folder."""
    entry = next(e for e in map(json.loads, CAPTIONS.read_text().splitlines()) if e["id"] == PHOTOGRAPH)
    entry = {"id": PHOTOGRAPH, "image": entry["image"], "caption": entry["captions"][CAPTION]}
    settings = {"model": {"name": "photo"}, "explain": {"scales": SCALES}, "engine": {"kind": "inline"}}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        every = phrasebox.RunConfig(input=INPUT, output={"path": f"{folder}/all"}, **settings)
        photographs = phrasebox.open_dataset(phrasebox.run(every))
        (Path(folder) / "captions.jsonl").write_text(json.dumps(entry) + "\n")
        given = {"path": f"{folder}/captions.jsonl", "image_root": str(FOLDER)}
        run = phrasebox.RunConfig(input=given, output={"path": f"{folder}/out"}, **settings)
        dataset = phrasebox.open_dataset(phrasebox.run(run))
        phrases = list(dict.fromkeys(row["phrase"] for row in dataset.regions().to_pylist()))
        located = phrasebox.Locator(run=run)(FOLDER / entry["image"], phrases)

        caption = entry["caption"]
        maps = ""
        for number, phrase in enumerate(phrases):
            colour = COLOURS[number % len(COLOURS)]
            start = caption.lower().index(phrase)
            words = caption[start : start + len(phrase)]
            caption = caption.replace(words, f'<mark style="border-color: {colour}">{words}</mark>')
            heat = located.heat_picture()
            width = heat.width // len(phrases)
            side = Image.open(FOLDER / entry["image"])
            height = round(360 * side.height / max(side.size)) - 2
            cut = heat.crop((number * width + 4, 8, (number + 1) * width - 4, height))
            maps += f'<p style="color: {colour}">{phrase}</p><img src="{as_source(cut)}">'

        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        number = dataset.sample(PHOTOGRAPH)["id"]
        viewer = screenshot(browser, dataset, f"sample/{number}", 860, DRAW_ALL)
        screenshot(browser, photographs, "", 1280).save(out / "inspect.jpg", quality=88)
        sheet = browser.new_page(viewport={"width": 1836, "height": 900})
        sheet.set_content(
            PAGE.format(
                photo=as_source(Image.open(FOLDER / entry["image"])),
                caption=caption,
                maps=maps,
                regions=as_source(located.picture()),
                viewer=as_source(viewer),
            )
        )
        height = sheet.evaluate("document.querySelector('main').offsetHeight") + 36
        shot = sheet.screenshot(clip={"x": 0, "y": 0, "width": 1836, "height": height})
        Image.open(io.BytesIO(shot)).convert("RGB").save(out / "idea.jpg", quality=88)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
