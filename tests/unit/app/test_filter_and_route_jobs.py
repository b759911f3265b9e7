"""Stages that filter and route, without a model: what they write from constructed tables, and that counts add up."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest

from lightning_mmrl.app.experts import FEWEST
from lightning_mmrl.app.kinds.filter import FilterJob
from lightning_mmrl.app.kinds.route import RouteJob
from lightning_mmrl.data.manifest_lines import write_manifest
from lightning_mmrl.data.rollout_table import RolloutRow, iter_table, table_files, write_table
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError, RewardError, StageError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.data import PromptSettings, SourceSettings
from lightning_mmrl.settings.filter import EvenSettings, FilterSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.types.records import Completion, Message, Sample, Score, StageSpec

REWARDS = RewardSettings(
    components={"label": {"_target_": "lightning_mmrl.rewards.label_answer.LabelAnswer", "labels": ["2", "3", "4"]}},
    weights={"label": 1.0},
)
PATTERNS = [pattern for size in (1, 2, 4) for pattern in product("rwi", repeat=size)]


def prompt(number, *answers, **columns):
    turns = (
        Message(role="user", content=f"{number} + 0 = ?"),
        *(Message(role="assistant", content=a) for a in answers),
    )
    return Sample(id=f"p{number:03d}", messages=turns, solution="2", **columns)


def row(number, pattern):
    scores = {
        "r": Score(total=1.0, components={"label": 1.0}),
        "w": Score(total=0.0, components={"label": 0.0}),
        "i": Score(total=0.0, components={}, valid=False, reason="lost"),
    }
    texts = [f"<answer>{'2' if letter == 'r' else '3'}</answer> {place}" for place, letter in enumerate(pattern)]
    completions = tuple(Completion(text=text, num_tokens=3, truncated=False) for text in texts)
    return RolloutRow(
        sample=prompt(number), completions=completions, scores=tuple(scores[x] for x in pattern), policy_version=0
    )


class Log:
    """A tracked run."""

    def __init__(self):
        self.metrics = {}

    def log_metrics(self, metrics, step):
        self.metrics |= metrics


class Place:
    """A folder with a table of all patterns, and jobs that read it."""

    def __init__(self, folder):
        self.folder, self.said = folder, []
        self.table = folder / "part-000000.jsonl"
        write_table(self.table, [row(number, pattern) for number, pattern in enumerate(PATTERNS)])
        self.parts = SimpleNamespace(
            group=RankGroup(),
            template=PromptTemplate(PromptSettings()),
            console=SimpleNamespace(say=self.said.append, update=lambda *args: None),
            title=lambda spec: spec.name,
            config=SimpleNamespace(output_dir=str(folder), run_name="run"),
        )

    def job(self, kind, settings, **more):
        spec = StageSpec(name="sort", index=0, settings=settings, seed=3, reads_weights=False)
        common = {"spec": spec, "media_folder": str(self.folder), "run_log": Log(), "parts": self.parts}
        return kind(**common, **more)

    def made(self, job, artifact):
        """What an artifact holds: its samples, the reasons of what it lacks, and its facts."""
        folder = self.folder / artifact
        folder.mkdir(exist_ok=True)
        facts = job.export(artifact, folder)
        path = folder / facts["manifest"]
        dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
        samples = read_manifest(path, self.folder) if path.read_text() else []
        return samples, {each["id"]: each["reason"] for each in dropped}, facts

    def filtered(self, files=None, **changes):
        files = [self.table] if files is None else files
        job = self.job(FilterJob, FilterSettings(kind="filter", **changes), files=files)
        job.run()
        return self.made(job, "kept")

    def filtered_samples(self, samples, **changes):
        write_manifest(self.folder / "given.jsonl", samples)
        source = SourceSettings(manifest="given.jsonl", root=str(self.folder))
        job = self.job(FilterJob, FilterSettings(kind="filter", **changes), sources={"given": source})
        job.run()
        return self.made(job, "kept")

    def traces(self, samples):
        write_manifest(self.folder / "traces.jsonl", samples)
        return {"traces": SourceSettings(manifest="traces.jsonl", root=str(self.folder))}

    def asked(self, prompts, *, traces=(), **changes):
        """A route of prompts that no model has answered."""
        write_manifest(self.folder / "prompts.jsonl", prompts)
        source = SourceSettings(manifest="prompts.jsonl", root=str(self.folder))
        settings = RouteSettings(kind="route", rewards=REWARDS, **changes)
        job = self.job(RouteJob, settings, prompts={"prompts": source}, traces=dict(traces))
        job.run()
        return job

    def routed(self, settings=None, traces=()):
        settings = settings or RouteSettings(kind="route", rewards=REWARDS)
        job = self.job(RouteJob, settings, files=[self.table], traces=dict(traces))
        job.run()
        return job


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def share(pattern):
    judged = [letter for letter in pattern if letter != "i"]
    return judged.count("r") / len(judged) if judged else None


def ids(test):
    return {f"p{number:03d}" for number, pattern in enumerate(PATTERNS) if test(share(pattern), pattern)}


def test_a_filter_keeps_the_prompts_of_the_band_and_counts_all_others(place):
    samples, dropped, facts = place.filtered(min_pass_rate=0.25, max_pass_rate=0.5)
    assert {sample.id for sample in samples} == ids(lambda rate, _: rate is not None and 0.25 <= rate <= 0.5)
    assert set(dropped) | {sample.id for sample in samples} == ids(lambda *_: True)
    assert facts["counts"] == {"kept": len(samples), **Counter(dropped.values())}
    assert sum(facts["counts"].values()) == len(PATTERNS)


def test_right_answers_of_a_table_take_the_place_of_prompts(place):
    samples, dropped, facts = place.filtered(right=True, mixed=True, keep=SelectionSettings(max_per_prompt=2))
    mixed = [(number, pattern) for number, pattern in enumerate(PATTERNS) if share(pattern) not in (None, 0, 1)]
    wanted = {f"p{number:03d}#{at}" for number, p in mixed for at in [i for i, x in enumerate(p) if x == "r"][:2]}
    assert {sample.id for sample in samples} == wanted
    assert all("<answer>2</answer>" in sample.messages[-1].content for sample in samples)
    assert sum(facts["counts"].values()) == sum(map(len, PATTERNS)) == len(samples) + len(dropped)


def test_a_column_is_made_even_with_reasons(place):
    samples, dropped, _ = place.filtered(even=EvenSettings(by="pass_rate", at_most=3))
    rates = Counter(share(PATTERNS[int(sample.id[1:])]) for sample in samples)
    assert rates == {rate: 3 for rate in (0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0)}
    assert set(dropped.values()) == {"evened_out", "too_few_judged"}


def test_the_targets_of_a_manifest_are_judged(place):
    given = [prompt(1, "<answer>2</answer>"), prompt(2, "<answer>3</answer>"), prompt(3), prompt(4, "nothing")]
    samples, dropped, facts = place.filtered_samples(given, right=True, rewards=REWARDS)
    assert samples == given[:1]
    assert dropped == {"p002": "wrong", "p003": "no_target", "p004": "wrong"}
    assert facts["counts"] == {"kept": 1, "wrong": 2, "no_target": 1}


def test_samples_are_made_even_by_any_column(place):
    given = [prompt(number, extras={"topic": "sums" if number % 3 else "words"}) for number in range(9)]
    samples, dropped, _ = place.filtered_samples([*given, prompt(9)], even=EvenSettings(by="topic"))
    assert Counter(sample.extras["topic"] for sample in samples) == {"sums": 3, "words": 3}
    assert Counter(dropped.values()) == {"evened_out": 3, "no_value": 1}
    with pytest.raises(DataError, match=r"even\.by is 'topci', and none of 1 rows has a value there"):
        place.filtered_samples([prompt(1)], even=EvenSettings(by="topci"))


def test_an_id_in_two_sources_is_refused_and_takes_no_verdict_of_the_other(place):
    sources = {}
    for name, samples in (
        ("a", [prompt(1, "<answer>2</answer>")]),
        ("b", [prompt(2), prompt(1, "<answer>3</answer>")]),
    ):
        write_manifest(place.folder / f"{name}.jsonl", samples)
        sources[name] = SourceSettings(manifest=f"{name}.jsonl", root=str(place.folder))
    job = place.job(FilterJob, FilterSettings(kind="filter", right=True, rewards=REWARDS), sources=sources)
    with pytest.raises(DataError, match=r"stages\.sort\.data\.sources: two samples have the id 'p001'; rename one"):
        job.run()


def unjudged(number, text="<answer>2</answer>"):
    """A sample whose solution is no label, so that its score is invalid."""
    return replace(prompt(number, text), solution="seven")


def test_rewards_that_cannot_judge_end_the_stage_and_say_how_to_go_on(place):
    given = [unjudged(number) for number in range(20)]
    with pytest.raises(RewardError, match=r"stages\.sort\.rewards: 20 of 20 scores are invalid, more than") as ended:
        place.filtered_samples(given, right=True, rewards=REWARDS)
    assert "or set stages.sort.rewards.max_invalid_rate to 1 to leave these answers out" in str(ended.value)
    dropped = place.filtered_samples(given, right=True, rewards=replace(REWARDS, max_invalid_rate=1.0))[1]
    assert Counter(dropped.values()) == {"invalid_score": 20}


def test_few_invalid_scores_end_no_stage(place):
    given = [unjudged(number) for number in range(FEWEST - 1)]
    assert Counter(place.filtered_samples(given, right=True, rewards=REWARDS)[1].values()) == {"invalid_score": 19}


@pytest.mark.parametrize(("limit", "ends"), [(0.5, False), (0.2, True)])
def test_invalid_scores_are_counted_over_all_draws_of_a_stage(place, limit, ends):
    """Of 30 first answers 28 are right; the two others are invalid, and so are all 24 further ones."""
    rows = [replace(row(number, "w"), sample=prompt(number)) for number in range(28)]
    rows += [replace(row(number, "w"), sample=replace(prompt(number), solution="seven")) for number in (28, 29)]
    write_table(place.table, rows)
    samples = [prompt(number, "<answer>2</answer>") for number in range(28)]
    samples += [replace(unjudged(number), id=f"p{number:03d}#{draw}") for number in (28, 29) for draw in range(13)]
    settings = RouteSettings(kind="route", rewards=replace(REWARDS, max_invalid_rate=limit), tries=13)
    if ends:  # at the 4th draw, 8 of 36
        with pytest.raises(RewardError, match="8 of 36 scores are invalid"):
            place.routed(settings, traces=place.traces(samples))
    else:
        job = place.routed(settings, traces=place.traces(samples))
        assert len(place.made(job, "expert")[0]) == 28
        assert job.facts["experts"]["traces"] == {"right": 28, "invalid_score": 26}


def test_every_prompt_of_a_table_is_in_one_place_and_the_counts_say_so(place):
    job = place.routed()
    made = {name: place.made(job, name) for name in ("own", "expert", "solved", "unsolved", "pairs")}
    at_home = {name: {sample.id.partition("#")[0] for sample in samples} for name, (samples, _, _) in made.items()}
    assert at_home["own"] == ids(lambda rate, _: rate not in (None, 0, 1))
    assert at_home["solved"] == ids(lambda rate, _: rate == 1)
    assert at_home["unsolved"] == ids(lambda rate, _: rate == 0)
    assert at_home["pairs"] == ids(lambda _, pattern: {"r", "w"} <= set(pattern))
    assert at_home["expert"] == set()
    for name, (samples, dropped, facts) in made.items():
        counts = dict(facts["counts"])
        assert counts.pop("kept") == len(samples)
        assert counts.pop("prompts") == len(at_home[name])
        assert counts == Counter(dropped.values())
        assert dropped.keys() == ids(lambda *_: True) - at_home[name]
    routing = made["own"][2]["routing"]
    assert sum(routing["prompts"].values()) == len(PATTERNS)
    assert sum(routing["own_answers"].values()) == sum(map(len, PATTERNS))
    assert job.run_log.metrics["sort/data/solved"] == len(at_home["solved"])


def test_right_traces_are_taught_and_wrong_ones_are_not(place):
    never = sorted(ids(lambda rate, _: rate == 0))
    said = {0: ["<answer>2</answer>"], 1: ["<answer>3</answer>"], 2: ["<answer>4</answer>", "so <answer>2</answer>"]}
    traces = [
        Sample(id=f"{name}#{draw}", messages=prompt(int(name[1:]), text).messages)
        for place_, name in enumerate(never)
        for draw, text in enumerate(said.get(place_ % 4, []))
    ]
    stranger = Sample(id="x", messages=prompt(1, "<answer>2</answer>").messages)
    settings = RouteSettings(kind="route", rewards=REWARDS, tries=2)
    job = place.routed(settings, traces=place.traces([*traces, stranger]))
    samples, dropped, facts = place.made(job, "expert")
    assert [sample.id for sample in samples] == [f"{name}#expert" for at, name in enumerate(never) if at % 4 in (0, 2)]
    assert all("<answer>2</answer>" in sample.messages[-1].content for sample in samples)
    assert {dropped[name] for at, name in enumerate(never) if at % 4 == 1} == {"wrong"}
    assert {dropped[name] for at, name in enumerate(never) if at % 4 == 3} == {"no_trace"}
    assert facts["routing"]["experts"]["traces"]["right"] == len(samples)
    assert job.run_log.metrics["sort/expert/unmatched_traces"] == 1
    metrics = {key[len("sort/expert/") :]: value for key, value in job.run_log.metrics.items() if "/expert/" in key}
    two, one, none = (len([at for at in range(len(never)) if at % 4 in kinds]) for kinds in ((2,), (0, 1), (3,)))
    assert metrics == {
        "asked": one + 2 * two,
        "answered": one + 2 * two,
        "right": len(samples),
        "refused": 0,
        "failed": 0,
        "not_asked": 2 * none + sum(at % 4 == 1 for at in range(len(never))),
        "unmatched_traces": 1,
    }
    assert {sample.id for sample in place.made(job, "unsolved")[0]} == set(never) - {s.id[:4] for s in samples}


def test_a_trace_without_the_prefill_is_not_taught(place):
    place.parts.template = PromptTemplate(PromptSettings(prefill="<think>"))
    name = min(ids(lambda rate, _: rate == 0))
    job = place.routed(traces=place.traces([prompt(int(name[1:]), "<answer>2</answer>")]))
    assert place.made(job, "expert")[1][name] == "lacks_prefill"


def test_experts_are_asked_for_all_prompts_that_no_model_has_answered(place):
    prompts = [prompt(number) for number in range(4)]
    said = {0: "<answer>2</answer>", 1: "<answer>3</answer>", 3: "so <answer>2</answer>"}
    traces = place.traces([prompt(number, text) for number, text in said.items()])
    job = place.asked(prompts, traces=traces)
    samples, dropped, facts = place.made(job, "expert")
    assert [sample.id for sample in samples] == ["p000#expert", "p003#expert"]
    assert dropped == {"p001": "wrong", "p002": "no_trace"}
    assert facts["routing"]["prompts"] == {"never_solved": 4}
    assert [sample.id for sample in place.made(job, "unsolved")[0]] == ["p001", "p002"]
    folder = place.folder / "answers"
    folder.mkdir()
    assert job.export("answers", folder)["counts"] == {"kept": 2, "wrong": 1, "no_trace": 1}
    rows = [row for path in table_files(folder) for row in iter_table(path)]
    assert [(row.sample, row.right, row.pass_rate) for row in rows] == [(prompts[n], (True,), 1.0) for n in (0, 3)]
    assert [row.completions[0].text for row in rows] == [said[0], said[3]]
    assert sum(job.run_log.metrics[f"sort/expert/{name}"] for name in ("asked", "not_asked")) == 4


def test_a_debug_run_of_prompts_has_answers_to_all_of_them(place):
    place.parts.template = PromptTemplate(PromptSettings(prefill="<think>"))
    job = place.asked([prompt(number) for number in range(3)], debugging=True)
    assert [sample.messages[-1].content for sample in place.made(job, "expert")[0]] == ["<think>?"] * 3
    assert len(place.made(job, "unsolved")[0]) == 3
    folder = place.folder / "answers"
    folder.mkdir()
    assert job.export("answers", folder)["counts"] == {"kept": 3}
    assert len(list(iter_table(table_files(folder)[0]))) == 3


def test_a_prompt_that_comes_twice_is_refused(place):
    with pytest.raises(DataError, match="the prompts: prompt 'p001' has two rows"):
        place.job(RouteJob, RouteSettings(kind="route"), prompts=twice(place)).run()


def twice(place):
    """Two sources with the same prompt."""
    write_manifest(place.folder / "prompts.jsonl", [prompt(1)])
    source = SourceSettings(manifest="prompts.jsonl", root=str(place.folder))
    return {"one": source, "other": source}


def test_a_table_with_a_prompt_twice_is_refused(place):
    write_table(place.table, [row(1, "r"), row(1, "w")])
    with pytest.raises(DataError, match="prompt 'p001' has two rows; make the ids of prompts unique"):
        place.routed()


def test_a_table_that_changes_meanwhile_loses_no_prompt_in_silence(place):
    job = place.routed()
    write_table(place.table, [row(number, pattern) for number, pattern in enumerate(PATTERNS) if number])
    with pytest.raises(StageError, match="of 93; the table changed meanwhile, run the stage again"):
        place.made(job, "solved")


def test_a_debug_run_has_samples_everywhere(place):
    write_table(place.table, [row(number, "ww") for number in range(3)])
    job = place.routed(RouteSettings(kind="route", rewards=REWARDS).for_debugging())
    for name in ("own", "expert", "solved", "unsolved", "pairs"):
        assert len(place.made(job, name)[0]) == 3, name
