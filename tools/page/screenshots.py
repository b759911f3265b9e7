"""Takes the pictures of a run's page that the README shows.

    PYTHONPATH=. python tools/page/screenshots.py WORK RUN     docs/figures/report_wide.png and report_phone.png

WORK gets the browser, or has the one of check_page.py. The pictures have few colors, so that they stay small.
"""

import argparse
from pathlib import Path

from headless import Opened, browser, install, opened
from PIL import Image

from lightning_mmrl.report.media import MediaFolder
from lightning_mmrl.report.page import write_report

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"
NUM_COLORS = 48
WIDE, PHONE = {"width": 1180, "height": 1000}, {"width": 390, "height": 1000}
FILTER = """
() => {
  const select = (title, text) => {
    const labels = [...document.querySelectorAll("#browser label")];
    const label = labels.find((each) => each.firstChild.textContent === title);
    const choice = label.querySelector("select");
    choice.value = [...choice.options].find((each) => each.textContent === text).value;
    choice.dispatchEvent(new Event("change"));
  };
  select("Media", "shown");
  const tables = [...document.querySelectorAll("#browser option")].map((each) => each.textContent);
  select("Iteration, part or set", tables.filter((each) => each.startsWith("iteration_")).pop());
  select("Right or wrong", "wrong");
  const groups = [...document.querySelectorAll("#browser .group")];
  const group = groups.find((each) => /match [2-4] of/.test(each.textContent)) || groups[0];
  group.open = true;
  return groups.indexOf(group);
}
"""


def main() -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the browser and the page")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--answers", type=Path, help="folder of the run whose answers are shown; the same if unset")
    parser.add_argument("--chromium", help="a Chromium to use")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chromium, _ = install(options.work / "browser", options.chromium)
    wide = write_report([options.run], options.work / "wide.html")
    phone = write_report([options.answers or options.run], options.work / "phone.html", MediaFolder())
    with browser(chromium) as launched:
        with opened(launched, wide, width=WIDE["width"]) as watched:
            _picture(watched, "#glance", FIGURES / "report_wide.png", WIDE)
        with opened(launched, phone, width=PHONE["width"], dark=True) as watched:
            place = watched.page.evaluate(FILTER)
            watched.page.wait_for_selector("#browser .group[open] .answer")
            watched.page.locator("#browser .group[open] img").first.scroll_into_view_if_needed()
            watched.until("[...document.querySelectorAll('.group[open] img')].every((each) => each.complete)")
            _picture(watched, f"#browser .group:nth-child({place + 1})", FIGURES / "report_phone.png", PHONE)


def _picture(watched: Opened, start: str, path: Path, size: dict[str, int]) -> None:
    """The part of the page that begins at an element."""
    top = watched.page.evaluate("(start) => document.querySelector(start).getBoundingClientRect().top + scrollY", start)
    watched.page.screenshot(path=path, full_page=True, clip={"x": 0, "y": max(0, top - 8), **size})
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
