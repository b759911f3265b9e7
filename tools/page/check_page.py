"""Opens pages of runs in a headless Chromium and checks what they promise.

    PYTHONPATH=.:tests/helpers python tools/page/check_page.py WORK          the page of a small run that is made here
    ... check_page.py WORK --run runs/quickstart --second runs/rloo          the pages of these runs
    ... check_page.py WORK --only hostile                                    one check

WORK gets the browser (kept for the next time), the made runs and the pages. A line for each check: PASS or FAIL, its
name, and its figure. Exit code 1 if one fails.

- console: nothing on the console, no request, and nothing that the content policy refuses, at three widths
- width: nothing but boxes that scroll by themselves is wider than the window, at the same widths
- axe: no serious or critical finding of axe-core with everything unfolded: light and dark, wide and as on a phone
- keyboard: Tab reaches every control, and Enter opens a group
- size: at most 15 MB without media
- numbers: tables, confusion matrices, curves and answers equal the files of the run, which are read here by themselves
- browse: 10,000 completions are there, and a filter shows its result within 2 s of opening the page: seconds on the
  clock (fastest of 5), or on a processor where others keep the machine busy, for which the clock cannot tell
- hostile: 200 hostile completions, and such names, run nothing, load nothing, and add no element or attribute to those
  of a page of the same run with harmless texts
- two: the page of two runs passes console, width and axe, and its browser has answers of both
"""

import argparse
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headless import Opened, browser, install, opened
from hostile_texts import HOSTILE, harmless_run, hostile_run
from page_numbers import differences
from run_folders import rollout, whole_run

from lightning_mmrl.report.page import write_report

WIDTHS = (360, 800, 1400)
MOST_BYTES, MOST_SECONDS = 15_000_000, 2.0
NUM_COMPLETIONS, GROUP = 10_000, 8
BUSY = 1.5
"""Load of the machine from which on its clock says nothing about a page."""
SERIOUS = ("serious", "critical")
UNFOLD = "for (const each of document.querySelectorAll('details')) each.open = true"
ELEMENTS = """
() => [...document.querySelectorAll("*")].map((each) => [each.tagName, each.getAttributeNames().sort().join(" ")])
"""
OPENED = "[...document.querySelectorAll('#browser .group')].every((each) => each.childElementCount > 1)"
CONTROLS = "a[href], button:not(:disabled), input, select, summary, [tabindex='0']"
WIDE = """
() => [...document.querySelectorAll("body *")].filter((each) =>
  each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".scroll, .strip, pre"))
  .slice(0, 3).map((each) => `${each.tagName}.${each.className.baseVal ?? each.className}`)
"""
FILTER = """
() => {
  const label = [...document.querySelectorAll("#browser label")].find((each) =>
    each.firstChild.textContent === "Right or wrong");
  const select = label.querySelector("select");
  select.value = [...select.options].find((each) => each.textContent === "wrong").value;
  select.dispatchEvent(new Event("change"));
  return [performance.now() / 1000, document.querySelector("#browser [aria-live]").textContent];
}
"""


class CheckError(Exception):
    """A check that a page does not pass; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the checks need: the browser, axe-core, a folder to work in, and the runs."""

    chromium: Any
    axe: str
    work: Path
    runs: Sequence[Path]

    def page_of(self, *runs: Path) -> Path:
        """Writes the page of one run or two into the folder."""
        return write_report(runs, self.work / f"{'-'.join(run.name for run in runs)}.html")

    def fresh(self, name: str) -> Path:
        """A place for a run that is made anew."""
        place = self.work / "made" / name
        shutil.rmtree(place, ignore_errors=True)
        return place


def main() -> int:
    """Runs the checks and returns the exit code."""
    options = _parser().parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chromium, axe = install(options.work / "browser", options.chromium)
    from playwright.sync_api import Error as BrowserError  # installed just now

    failures = 0
    with browser(chromium) as launched:
        print(f"Chromium {launched.version}", flush=True)
        runs = [each.resolve() for each in (options.run, options.second) if each is not None]
        bench = Bench(chromium=launched, axe=axe, work=options.work, runs=runs)
        bench = bench if runs else Bench(chromium=launched, axe=axe, work=options.work, runs=[_small(bench)])
        for name, check in CHECKS.items():
            if options.only in (None, name):
                try:
                    verdict, figure = "PASS", check(bench)
                except CheckError as error:
                    verdict, figure = "FAIL", str(error)
                except (BrowserError, TimeoutError) as error:  # the page left, or its browser of answers never came
                    verdict, figure = "FAIL", str(error).splitlines()[0]
                failures += verdict == "FAIL"
                print(f"{verdict}  {name}: {figure}", flush=True)
    return int(failures > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the browser, the made runs and the pages")
    parser.add_argument("--run", type=Path, help="folder of a run; a small one is made if unset")
    parser.add_argument("--second", type=Path, help="folder of a second run; a small one is made if unset")
    parser.add_argument("--chromium", help="a Chromium to use")
    parser.add_argument("--only", choices=list(CHECKS), help="one check")
    return parser


def _small(bench: Bench) -> Path:
    return whole_run(bench.fresh("small")).folder


def _require(found: object, message: str) -> None:
    if found:
        raise CheckError(f"{message}: {found}")


def _quiet(page: Opened) -> None:
    _require(page.console, "the console has")
    _require(page.dialogs, "dialogs were opened")
    _require(page.requests, "it asked for")
    _require(page.broken, "the content policy refused")


def check_console(bench: Bench, *runs: Path) -> str:
    """Nothing on the console and no request, also when all is unfolded and a filter is used."""
    path = bench.page_of(*(runs or bench.runs[:1]))
    for width in WIDTHS:
        for dark in (False, True):
            with opened(bench.chromium, path, width=width, dark=dark) as page:
                page.page.evaluate(UNFOLD)
                page.page.evaluate(FILTER)
                page.page.wait_for_timeout(300)
                _quiet(page)
    return f"silent at {', '.join(map(str, WIDTHS))} pixels, light and dark"


def check_width(bench: Bench, *runs: Path) -> str:
    """The page itself never scrolls sideways."""
    path = bench.page_of(*(runs or bench.runs[:1]))
    for width in WIDTHS:
        with opened(bench.chromium, path, width=width) as page:
            page.page.evaluate(UNFOLD)
            page.page.wait_for_timeout(300)
            _require(page.page.evaluate(WIDE), f"at {width} pixels these are too wide")
            own = page.page.evaluate("document.documentElement.scrollWidth")
            _require(own > width and own, f"at {width} pixels the page is wider")
    return f"fits {', '.join(map(str, WIDTHS))} pixels"


def check_axe(bench: Bench, *runs: Path) -> str:
    """axe-core has no serious finding; lesser ones are counted."""
    path, lesser, passed = bench.page_of(*(runs or bench.runs[:1])), Counter[str](), 0
    for width in (WIDTHS[0], WIDTHS[-1]):
        for dark in (False, True):
            with opened(bench.chromium, path, width=width, dark=dark) as page:
                page.page.evaluate(UNFOLD)
                page.page.wait_for_timeout(300)
                page.page.evaluate(bench.axe)
                found = page.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
                serious = [
                    f"{each['id']} at {each['nodes'][0]['html'][:120]} ({len(each['nodes'])} nodes)"
                    for each in found["violations"]
                    if each["impact"] in SERIOUS
                ]
                _require(serious, f"at {width} pixels, {'dark' if dark else 'light'}")
                lesser.update(each["id"] for each in found["violations"])
                passed = len(found["passes"])
    rest = f"; lesser ones: {', '.join(lesser)}" if lesser else ", and no lesser ones"
    return f"no serious finding ({passed} rules passed){rest}"


def check_keyboard(bench: Bench) -> str:
    """Tab goes through all controls; Enter opens the first group."""
    with opened(bench.chromium, bench.page_of(bench.runs[0])) as watched:
        page = watched.page
        wanted = page.evaluate(
            f"""() => {{
              window.controls = [...document.querySelectorAll("{CONTROLS}")].filter((each) => each.checkVisibility());
              window.reached = new Set();
              document.addEventListener("focusin", (event) => window.reached.add(event.target));
              return window.controls.length;
            }}"""
        )
        for _ in range(wanted + 50):
            page.keyboard.press("Tab")
        left = page.evaluate(
            "window.controls.filter((each) => !window.reached.has(each)).map((each) => each.outerHTML.slice(0, 80))"
        )
        _require(left, "Tab does not reach")
        page.focus("#browser .group summary")
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)
        answers = page.evaluate("document.querySelectorAll('#browser .group[open] .answer').length")
        _require(answers == 0, "Enter opens no group")
    return f"{wanted} controls reached; Enter opened a group with {answers} answers"


def check_size(bench: Bench) -> str:
    """The page without media is small enough to send."""
    size = bench.page_of(bench.runs[0]).stat().st_size
    _require(size > MOST_BYTES and size, f"more than {MOST_BYTES:,} bytes")
    return f"{size / 1e6:.2f} MB"


def check_numbers(bench: Bench) -> str:
    """What the page shows equals what the files say."""
    with opened(bench.chromium, bench.page_of(bench.runs[0])) as watched:
        found = list(differences(watched, bench.runs[0]))
    _require([difference for _, difference in found if difference is not None][:5], "differences")
    _require(not found, "nothing was compared")
    return f"{len(found):,} figures, matrices and groups equal the files"


def check_browse(bench: Bench) -> str:
    """10,000 completions, from opening the page to the result of a filter."""
    run = whole_run(bench.fresh("many"))
    per_table = 125
    for table in range(NUM_COMPLETIONS // GROUP // per_table):
        rows = [_many(table * per_table + number) for number in range(per_table)]
        run.roll("reason", rows, table=f"iteration_{table:06d}")
    (run.place("reason") / "rollouts" / "iteration_000001.jsonl").touch()
    path, seconds, processor = bench.page_of(run.folder), [], []
    for _ in range(5):
        with opened(bench.chromium, path) as watched:
            took, told = watched.page.evaluate(FILTER)
            seconds.append(took)
            processor.append(watched.processor_seconds())
    total = int(told.split(" of ")[-1].split(" ")[0])
    _require(total < NUM_COMPLETIONS and told, "completions are missing")
    _require(min(processor) > MOST_SECONDS and processor, f"more than {MOST_SECONDS} s on a processor")
    busy = os.getloadavg()[0] > BUSY
    _require(not busy and min(seconds) > MOST_SECONDS and seconds, f"more than {MOST_SECONDS} s")
    return (
        f"{told}; first result after {min(seconds):.2f} s (median {statistics.median(seconds):.2f}; "
        f"{min(processor):.2f} s on a processor, load {os.getloadavg()[0]:.1f}); {path.stat().st_size / 1e6:.1f} MB"
    )


def _many(number: int) -> Any:
    """A group whose answers have about 200 words, each answer other ones."""
    texts = tuple(
        "<think>"
        + " ".join(f"w{(number * 7919 + answer * 104729 + word * 31) % 5003}" for word in range(200))
        + f"</think><answer>{'happy' if answer % 2 else 'sad'}</answer>"
        for answer in range(GROUP)
    )
    return rollout(number, texts=texts, rewards=(0.0, 1.0) * (GROUP // 2))


def check_hostile(bench: Bench) -> str:
    """Every group of the browser is opened, every fold unfolded, every filter that has a hostile name used."""
    made = {"hostile": hostile_run(bench.fresh("hostile")), "harmless": harmless_run(bench.fresh("harmless"))}
    elements, counts = {}, {}
    for name, run in made.items():
        with opened(bench.chromium, bench.page_of(run.folder)) as watched:
            elements[name], counts[name] = _all_elements(watched)
            _quiet(watched)
    added = elements["hostile"] - elements["harmless"]
    _require(list(added.items())[:3], "elements were added")
    _require(list((elements["harmless"] - elements["hostile"]).items())[:3], "elements are missing")
    _require(counts["hostile"] < len(HOSTILE) and counts["hostile"], "too few answers were shown")
    return (
        f"{counts['hostile']} answers ({len(HOSTILE)} hostile completions), {sum(elements['hostile'].values()):,} "
        "elements as with harmless texts; no dialog, request, message or refusal"
    )


def _all_elements(watched: Opened) -> tuple[Counter, int]:
    """All elements of all pages of the browser, with the names of their attributes, and the number of answers."""
    page, found, answers = watched.page, Counter[tuple[str, ...]](), 0
    page.evaluate("for (const each of document.querySelectorAll('#browser select')) each.selectedIndex = 0")
    while True:
        page.evaluate(UNFOLD)
        watched.until(OPENED)
        found.update(map(tuple, page.evaluate(ELEMENTS)))
        answers += page.evaluate("document.querySelectorAll('#browser .answer').length")
        after = page.locator("#browser .pager button").last
        if after.is_disabled():
            return found, answers
        after.click()


def check_two(bench: Bench) -> str:
    """The page of two runs."""
    second = bench.runs[1] if len(bench.runs) > 1 else whole_run(bench.fresh("second")).folder
    runs = (bench.runs[0], second)
    told = [check(bench, *runs) for check in (check_console, check_width, check_axe)]
    with opened(bench.chromium, bench.page_of(*runs)) as watched:
        names = watched.page.evaluate(
            "[...document.querySelectorAll('#browser label')].find((each) => each.firstChild.textContent === 'Run')"
            ".querySelectorAll('option').length"
        )
    _require(names != len(runs) + 1 and names, "the filter of runs has")
    return "; ".join(told)


CHECKS: dict[str, Callable[[Bench], str]] = {
    "console": check_console,
    "width": check_width,
    "axe": check_axe,
    "keyboard": check_keyboard,
    "size": check_size,
    "numbers": check_numbers,
    "browse": check_browse,
    "hostile": check_hostile,
    "two": check_two,
}

if __name__ == "__main__":
    raise SystemExit(main())
