"""Opens whom judges ask, an endpoint or a local checkpoint, with what was answered before."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mmrl.config.checks.experts import check_expert
from lightning_mmrl.curriculum.experts.chat import ChatBodies, asker
from lightning_mmrl.curriculum.experts.endpoint import ChatEndpoint, key_of
from lightning_mmrl.curriculum.experts.ledger import Ledger
from lightning_mmrl.curriculum.experts.replies import Reply, Usage
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import read_json, write_json
from lightning_mmrl.protocols.experts import Expert, ExpertAnswer, ExpertRequest
from lightning_mmrl.rewards.llm_judge import LlmJudge
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.app.local_chat import LocalChat

FOLDER = "judges"
"""Folder of a run with the replies of judges."""
Poll = Callable[[], None]
Progress = Callable[[int, int, str], None]


def check_judge(path: str, judge: LlmJudge) -> None:
    """Refuses a judge that could not be asked, before anything is trained.

    Raises:
        ConfigError: The address or the name of a variable is refused, the environment has no key, or the folder of the
            checkpoint does not exist.
    """
    if judge.asked is not None:
        check_expert(path, *judge.asked)
        key_of(judge.asked[1])
    elif not (Path(str(judge.local_checkpoint)) / "config.json").is_file():
        raise ConfigError(
            f"{path}.local_checkpoint is {judge.local_checkpoint}, which is no Hugging Face folder; correct it"
        )


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Opens judges for one run or one command.

    Attributes:
        folder: Folder of the replies.
        rank: Number of this process; each has a file of its own, and reads those of the others when it begins.
        poll: Called often while a judge is asked; raises to end that.
        on_progress: Called with the numbers of questions that are done and of all, and with the cost in words.
    """

    folder: Path
    rank: int = 0
    poll: Poll = lambda: None
    on_progress: Progress = lambda done, total, details: None

    @classmethod
    def of_run(cls, parts: "Assembly") -> "Judges":
        """Opens the judges of a run."""
        config, console = parts.config, parts.console
        return cls(
            folder=Path(config.output_dir) / config.run_name / FOLDER,
            rank=parts.group.rank,
            poll=parts.group.interruption.poll,
            on_progress=lambda done, total, details: console.update("asking the judge", done, total, details),
        )

    def opened(self, name: str, judge: LlmJudge, path: str, resources: ExitStack) -> "ChatEndpoint | KeptChat":
        """Returns whom a judge asks; `resources` release it. What decides its verdicts is recorded beside the replies.

        Args:
            name: Name of the judge's files.
            judge: The judge.
            path: The key of the judge, for messages.
            resources: Closed when the judge is no longer asked.

        Raises:
            ConfigError: As `check_judge`; or another process writes the same file.
            StageError: The file of replies is damaged.
        """
        check_judge(path, judge)
        own = self.folder / (f"{name}.jsonl" if self.rank == 0 else f"{name}.rank{self.rank}.jsonl")
        siblings = [file for file in sorted(self.folder.glob(f"{name}*.jsonl")) if file != own]
        who = judge.asked or (ExpertSettings(model=str(judge.local_checkpoint)), EndpointSettings(base_url="local"))
        shared = None if who[1].answers is None else Path(who[1].answers) / own.name
        ledger = resources.enter_context(Ledger.opened(own, shared, asker(who[0], judge.sampling), siblings))
        if self.rank == 0:
            _note(self.folder / f"{name}.json", judge)
        bodies = ChatBodies(who[0], judge.sampling, who[1], self.folder)
        if judge.asked is None:
            from lightning_mmrl.app.local_chat import LocalChat

            chat = LocalChat(Path(str(judge.local_checkpoint)), judge.max_reply_tokens, self.poll)
            return KeptChat(chat=chat, ledger=ledger, bodies=bodies, on_progress=self.on_progress)
        return ChatEndpoint(
            expert=who[0],
            endpoint=who[1],
            bodies=bodies,
            ledger=ledger,
            poll=self.poll,
            on_progress=self.on_progress,
        )


def _note(path: Path, judge: LlmJudge) -> None:
    """Records what decides the verdicts: one entry for each version, the latest last."""
    known = read_json(path, "remove it; it only says what judges were told")["versions"] if path.is_file() else []
    if judge.described() not in known[-1:]:
        write_json(path, {"versions": [*known, judge.described()]})


@dataclass(kw_only=True)
class KeptChat:
    """Implements `Expert`: a local checkpoint whose replies are kept, so that none is computed twice.

    Attributes:
        chat: The checkpoint, loaded when it is first asked.
        ledger: What it was asked and replied before.
        bodies: Gives each question its hash.
        on_progress: As in `Judges`.
    """

    chat: "LocalChat"
    ledger: Ledger
    bodies: ChatBodies
    on_progress: Progress

    @property
    def name(self) -> str:
        """The folder of the checkpoint."""
        return self.chat.name

    @property
    def cost(self) -> str:
        """The questions and tokens so far in words."""
        return f"{self.ledger.num_requests} questions, {self.ledger.num_tokens} tokens"

    def ask(self, requests: Sequence[ExpertRequest]) -> list[ExpertAnswer]:
        """Returns a reply for each request, in their order."""
        hashes = [self.bodies.hash(request) for request in requests]
        waiting = [place for place, each in enumerate(hashes) if self.ledger.answer(each) is None]
        done = len(requests) - len(waiting)
        for places, completions in self.chat.replies(requests, waiting):
            for place, completion in zip(places, completions, strict=True):
                usage = Usage(num_tokens=completion.num_tokens)
                reply = Reply(text=completion.text, is_cut=completion.truncated, usage=usage)
                asked = sum(len(turn.content) for turn in requests[place].turns)
                self.ledger.sent(hashes[place])
                self.ledger.keep(hashes[place], reply, usage.billed(asked, len(completion.text)))
            done += len(places)
            self.on_progress(done, len(requests), self.cost)
        return [_answer(request, self.ledger.answer(each)) for request, each in zip(requests, hashes, strict=True)]


def _answer(request: ExpertRequest, reply: Reply | None) -> ExpertAnswer:
    assert reply is not None
    return ExpertAnswer(key=request.key, text=reply.text, num_tokens=reply.num_tokens, is_cut=reply.is_cut)


def opened_all(
    judges: Mapping[str, LlmJudge], opener: Judges, path: str, resources: ExitStack
) -> dict[str, tuple[LlmJudge, Expert]]:
    """Opens all judges of the rewards of a stage.

    Args:
        judges: The judges by the name of their component.
        opener: Opens each of them.
        path: The key of the rewards, such as `stages.reason.rewards`.
        resources: Closed when they are no longer asked.

    Raises:
        ConfigError: As `Judges.opened`.
    """
    stage = path.split(".")[1]
    return {
        name: (judge, opener.opened(f"{stage}.{name}", judge, f"{path}.components.{name}", resources))
        for name, judge in judges.items()
    }
