"""`mmrl judge RUN`: a language model judges the answers of a run, and its agreement with the rules is shown."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import ConfigError

EXAMPLES = """\
examples:
  mmrl judge runs/quickstart expert.model=qwen3-32b endpoint.base_url=http://127.0.0.1:8000/v1
  mmrl judge runs/quickstart expert.model=gpt-5 endpoint.base_url=https://api.example.com/v1 \\
    endpoint.key_variable=MMRL_EXPERT_KEY endpoint.max_requests=500 --set test --stage reason
  mmrl judge runs/quickstart local_checkpoint=models/Qwen3-4B --limit 100
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 1 if an answer got no verdict."""
    parser = argparse.ArgumentParser(
        prog="mmrl judge",
        usage="mmrl judge RUN KEY=VALUE ... [options]",
        description="Have a language model judge the answers that a run's evaluations kept. It reads the question, the "
        "right answer and the answer. Its verdicts are kept in RUN/judges: the same command goes on where it was "
        "stopped, and asks nothing twice. Keys are those of lightning_mmrl.rewards.llm_judge.LlmJudge: expert.model "
        "and endpoint.base_url of an OpenAI-compatible endpoint, or local_checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="the judge; {} and [] as in YAML")
    parser.add_argument("--stage", action="append", default=[], metavar="NAME", help="a stage, or base (default: all)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME", help="an evaluation set (default: all)")
    parser.add_argument("--limit", type=int, metavar="N", help="judge the first N answers of each set alone")
    parser.add_argument("--instructions", type=Path, metavar="FILE", help="the text of the key `instructions`")
    options = parser.parse_intermixed_args(arguments)
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; it must be at least 1")

    # Loaded here, so that argument errors load no libraries.
    from lightning_mmrl.app.judging import Selection, judge_run
    from lightning_mmrl.cli.judge_table import judged_lines
    from lightning_mmrl.config.saved import saved_config
    from lightning_mmrl.training.console import ConsoleProgress, report_console

    judge = _judge(options.keys, options.instructions)
    config = saved_config(options.run, [])
    chosen = Selection(stages=options.stage, sets=options.set, first=options.limit)
    num_missing, folder, done = 0, None, []
    console = report_console()
    try:
        with ConsoleProgress() as progress:
            for each in judge_run(options.run, config, judge, chosen, progress):
                num_missing, folder = num_missing + len(each.problems), each.folder.parent
                done.append(each)
    finally:
        for line in judged_lines(done, judge.name) if done else ():
            console.print(line, soft_wrap=True)
    console.print(f"verdicts in {folder}", soft_wrap=True)
    return 1 if num_missing else 0


def _judge(keys: Sequence[str], instructions: Path | None) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lightning_mmrl.registry import targets

    for key in keys:
        if "=" not in key:
            raise ConfigError(f"{key!r} is no KEY=VALUE; write for example expert.model=NAME")
    try:
        node = OmegaConf.to_container(OmegaConf.from_dotlist(list(keys)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the judge's keys cannot be read: {str(error).splitlines()[0]}") from error
    assert isinstance(node, dict)
    if instructions is not None:
        try:
            node["instructions"] = instructions.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--instructions {instructions} cannot be read: {error}") from error
    return targets.build({"_target_": "lightning_mmrl.rewards.llm_judge.LlmJudge", **node}, "judge")
