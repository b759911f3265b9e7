"""A headless Chromium and axe-core, installed outside the checkout, and pages opened in it."""

import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLAYWRIGHT, AXE, CHROMIUM = "playwright==1.65.2", "axe-core@4.14.1", "@sparticuz/chromium@147.0.0"
HEIGHT = 900
WATCH = """
window.broken = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.broken.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""
"""Runs before a page does, and notes what its content policy refuses."""
UNPACK = """
const { brotliDecompressSync } = require("node:zlib");
const { readFileSync, writeFileSync } = require("node:fs");
writeFileSync(process.argv[2], brotliDecompressSync(readFileSync(process.argv[1])), { mode: 0o755 });
"""


def install(folder: Path, chromium: str | None) -> tuple[str, str]:
    """Installs what is missing below `folder`; returns the path of a Chromium and the source of axe-core.

    Playwright and axe-core come from the package registries. The Chromium is the one given, else the one on PATH, else
    the one in the npm package `@sparticuz/chromium`, for machines that reach nothing but a registry.
    """
    environment = folder / "venv"
    if not environment.is_dir():
        venv.create(environment, with_pip=True)
        _run(str(environment / "bin" / "pip"), "install", "--quiet", PLAYWRIGHT)
    sys.path.append(str(next(environment.glob("lib/python*/site-packages"))))
    axe = _npm(AXE, folder / "axe") / "axe.min.js"
    found = chromium or shutil.which("chromium") or shutil.which("google-chrome")
    return found or str(_chromium(folder / "chromium")), axe.read_text(encoding="utf-8")


def _chromium(folder: Path) -> Path:
    package = _npm(CHROMIUM, folder)
    if not (folder / "chromium").is_file():
        _run("node", "-e", UNPACK, str(package / "bin" / "chromium.br"), str(folder / "chromium"))
    return folder / "chromium"


def _npm(package: str, folder: Path) -> Path:
    """The content of an npm package, without running any script of it."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        _run("npm", "pack", "--silent", package, "--pack-destination", str(folder))
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


@dataclass
class Opened:
    """A page in the browser: what it said on its console, which dialogs it opened and what it asked for."""

    page: Any
    session: Any
    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def note_dialog(self, dialog: Any) -> None:
        """Keeps the text of a dialog and closes it."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    @property
    def broken(self) -> list[str]:
        """What the content policy refused."""
        return self.page.evaluate("window.broken")

    def processor_seconds(self) -> float:
        """Processor seconds that the page's process has taken so far."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "ProcessTime")

    def until(self, expression: str) -> None:
        """Waits until a condition holds; from here, since the content policy lets nothing in the page evaluate a text.

        Raises:
            TimeoutError: It does not hold after 30 s.
        """
        for _ in range(600):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError(f"the page does not come to {expression}")

    def unpacked(self) -> None:
        """Waits until the browser of answers is there."""
        self.page.wait_for_selector("#browser fieldset", timeout=60_000)


@contextmanager
def browser(chromium: str) -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@contextmanager
def opened(launched: Any, path: Path, *, width: int = 1400, dark: bool = False, scale: int = 1) -> Iterator[Opened]:
    """A page of its own for a file, watched from before its first script."""
    scheme = "dark" if dark else "light"
    context = launched.new_context(
        viewport={"width": width, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=scale
    )
    context.add_init_script(WATCH)
    page = context.new_page()
    watched = Opened(page=page, session=context.new_cdp_session(page))
    watched.session.send("Performance.enable")
    address = path.resolve().as_uri()
    watched.page.on("console", lambda message: watched.console.append(f"{message.type}: {message.text}"))
    watched.page.on("pageerror", lambda error: watched.console.append(f"error: {error}"))
    watched.page.on("dialog", watched.note_dialog)
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    watched.page.goto(address)
    watched.requests = [url for url in watched.requests if url != address]
    watched.unpacked()
    yield watched
    context.close()
