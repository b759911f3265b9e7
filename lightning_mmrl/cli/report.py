"""`mmrl report RUN [RUN2]`: one HTML page that shows a run, two side by side, or a comparison; torch is not loaded."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="mmrl report",
        description="Write one HTML page about a run, or about two side by side, from the files in their folders: "
        "scores with intervals and gains, learning curves, confusion matrices, costs, and sampled answers. The page "
        "needs no network. Of the folder of a comparison, write page, tables and figure again, and print the result.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, such as runs/quickstart")
    parser.add_argument(
        "--out", type=Path, help="the page to write; report.html in the folder of the first run if unset"
    )
    parser.add_argument(
        "--media", action="store_true", help="lay frames and clips of the shown samples beside the page"
    )
    parser.add_argument(
        "--media-root", type=Path, help="folder that paths of media are relative to; as in the configuration if unset"
    )
    parser.add_argument(
        "--measure",
        metavar="SET/METRIC",
        help="of a comparison: print the tables of another measure, such as ood/uar, and write nothing",
    )
    options = parser.parse_args(arguments)

    # Loaded here, so that argument errors load no libraries.
    from lightning_mmrl.report.comparison import FILE
    from lightning_mmrl.report.page import write_report

    if any((folder / FILE).is_file() for folder in options.runs):
        return _compared(options)
    if options.measure is not None:
        parser.error(f"--measure {options.measure} is for the folder of a comparison, which has a {FILE}")

    media = None
    if options.media or options.media_root is not None:
        from lightning_mmrl.report.media import MediaFolder

        media = MediaFolder(root=options.media_root)
    path = write_report(options.runs, options.out, media)
    print(f"{path}  ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _compared(options: argparse.Namespace) -> int:
    from lightning_mmrl.cli.arms_table import print_comparison, print_summary
    from lightning_mmrl.errors import ConfigError
    from lightning_mmrl.report.arms_page import write_comparison
    from lightning_mmrl.report.arms_read import summarize
    from lightning_mmrl.training.console import report_console

    if len(options.runs) > 1 or options.out or options.media or options.media_root:
        raise ConfigError("the outputs of a comparison lie in its folder; name that folder alone, without an option")
    [folder] = options.runs
    console = report_console(width=140)
    if options.measure is None:
        print_comparison(write_comparison(folder), console)
        return 0
    name, slash, metric = options.measure.partition("/")
    if not (name and slash and metric):
        raise ConfigError(f"--measure is {options.measure!r}; give an evaluation set and a metric, such as ood/uar")
    summary = summarize(folder, (name, metric))
    if all(cell.value is None for cell in summary.cells):
        raise ConfigError(f"--measure {options.measure}: no run has a value; {summary.notes[0]}")
    print_summary(summary, console)
    return 0
