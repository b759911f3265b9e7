"""What stages that filter, route and bridge refuse, and which of their keys decide what they make."""

import pytest

from lightning_mmrl.config.compose import compose, compose_tree
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.route import SAMPLING
from lightning_mmrl.types.records import Edge

ORDER = ("order=[draw,sort]", "+stage@stages.draw=sample")
ROUTE, FILTER = (*ORDER, "+stage@stages.sort=route"), (*ORDER, "+stage@stages.sort=filter")
ASK = (*ORDER, "+stage@stages.sort=bridge")
TEACH = (*ASK, "+stages.sort.answers={stage: draw, artifact: rollouts}", "stages.sort.rewards=${stages.draw.rewards}")
EXPERT = ("stages.sort.expert={model: adder}", "stages.sort.endpoint={base_url: http://127.0.0.1:8000/v1}")
ASKS = ("stages.sort.table=null", "stages.sort.prompts={stage: draw, artifact: own}")
ALONE = ("stages.sort.table=null", "stages.sort.data.manifest=train.jsonl")
REWARDS = "stages.sort.rewards=${stages.draw.rewards}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["stages.sort.table=null", "stages.sort.data.manifest=a.jsonl"],
            "stages.sort.table: is missing; name the stage",
        ),
        (["stages.sort.table=null"], "stages.sort.table: is missing; name the stage"),
        (["stages.sort.table.stage=drow"], "stages.sort.table.stage is 'drow', which is no stage of the order; choose"),
        (["stages.sort.table.artifact=own"], "artifact is 'own', which is no table but manifest; known are rollouts"),
        (["stages.sort.table.artefact=own"], "stages.sort.table.artefact: unknown key; did you mean 'artifact'?"),
        (
            ["stages.sort.unsolved_at_most=1.0"],
            "unsolved_at_most is 1.0; it must be below .*solved_at_least, which is 1",
        ),
        (
            ["stages.sort.solved_at_least=0.0"],
            "unsolved_at_most is 0.0; it must be below .*solved_at_least, which is 0",
        ),
        (["stages.sort.solved_at_least=1.5"], "stages.sort.solved_at_least is 1.5; it must be from 0 to 1"),
        (["stages.sort.keep.wrong=true"], "stages.sort.keep.wrong is true; it must be false: nothing wrong is learned"),
        (["stages.sort.keep.min_tokens=9", "stages.sort.keep.max_tokens=3"], "min_tokens is 9; it must be at most"),
        (["stages.sort.pairs_per_prompt=-1"], "stages.sort.pairs_per_prompt is -1; it must be at least 0"),
        (["stages.sort.tries=0"], "stages.sort.tries is 0; it must be at least 1"),
        (EXPERT[:1], "stages.sort has expert and no endpoint; set stages.sort.endpoint, or stages.sort.expert to null"),
        (EXPERT[1:], "stages.sort has endpoint and no expert"),
        ([*EXPERT, "stages.sort.endpoint.base_url=host:8000/v1"], "endpoint.base_url is host:8000/v1; it must be http"),
        (
            [*EXPERT, "stages.sort.endpoint.base_url=http://k:secret@host/v1"],
            "endpoint.base_url is http://host/v1; it must be",
        ),
        (
            [*EXPERT, "stages.sort.endpoint.base_url='http://host/v1?key=1'"],
            "belongs into the variable that key_variable",
        ),
        (
            [*EXPERT, "stages.sort.endpoint.base_url=''"],
            "stages.sort.endpoint.base_url is ''; it must be a name or path",
        ),
        ([*EXPERT, "+stages.sort.endpoint.first_wait_s=900"], "first_wait_s is 900; it must be at most longest_wait_s"),
        (
            [*EXPERT, "+stages.sort.endpoint.key_variable=HF_TOKEN"],
            "key_variable is HF_TOKEN; it must be MMRL_EXPERT_KEY",
        ),
        ([*EXPERT, "+stages.sort.endpoint.key=sk"], "stages.sort.endpoint.key: unknown key"),
        ([*EXPERT, "stages.sort.rewards=null"], "stages.sort.rewards: is missing; a stage with an expert needs it"),
        ([*EXPERT, "stages.sort.sampling=null"], "stages.sort.sampling: is missing; a stage with an expert needs it"),
        ([*EXPERT, "stages.sort.rewards.pass_component=labl"], "pass_component is 'labl', which is no choice; did you"),
        (
            ["+stages.sort.prompts={stage: draw, artifact: own}"],
            "stages.sort has a table and prompts; sort the one or ask for the others",
        ),
        (["stages.sort.table=null", "stages.sort.prompts={stage: draw}", *EXPERT], "stages.sort.prompts.artifact"),
        (ASKS, "stages.sort has prompts and nobody to ask; give stages.sort.expert and endpoint, or traces"),
        (
            [*ASKS, *EXPERT, "stages.sort.prompts.artifact=rollouts"],
            "artifact is 'rollouts', which is no manifest but t",
        ),
        (
            [*ASKS, *EXPERT, "stages.sort.prompts.stage=drow"],
            "stages.sort.prompts.stage is 'drow', which is no stage of",
        ),
        (
            [*ASKS, *EXPERT, "stages.sort.replay=true"],
            "stages.sort.replay is True; it must be False with stages.sort.pr",
        ),
        (
            [*ASKS, *EXPERT, "stages.sort.pairs_per_prompt=2"],
            "pairs_per_prompt is 2; it must be 1 with stages.sort.prom",
        ),
        ([*ASKS, *EXPERT, "stages.sort.unsolved_at_most=0.5"], "unsolved_at_most is 0.5; it must be 0.0 with stages"),
        ([*ASKS, *EXPERT, "stages.sort.keep.order=shortest"], "stages.sort.keep is set; it must be as in stage/route,"),
        (["stages.sort.tries=2"], "stages.sort.tries is 2; it must be 1 without stages.sort.expert and without traces"),
        (["stages.sort.prompt={suffix: x}"], "stages.sort.prompt is set; it must be null without stages.sort.expert"),
        (["stages.sort.sampling.temperature=0.5"], "sampling is set; it must be as in stage/route without stages.sort"),
        (
            ["stages.sort.data.manifest=a.jsonl", "stages.sort.sampling.max_new_tokens=9"],
            "stages.sort.sampling is set; it must be as in stage/route without stages.sort.expert",
        ),
        (["+stages.sort.data.limit=9"], "stages.sort.data.limit is 9; it must be null without manifest and sources"),
        (
            [*EXPERT, "+stages.sort.endpoint.retries=0", "+stages.sort.endpoint.first_wait_s=2"],
            "first_wait_s is 2; it must be 1 with stages.sort.endpoint.retries=0",
        ),
        (
            [*EXPERT, "+stages.sort.endpoint.retries=0", "+stages.sort.endpoint.longest_wait_s=9"],
            "longest_wait_s is 9; it must be 120 with stages.sort.endpoint.retries=0",
        ),
        *(
            ([*EXPERT, f"+stages.sort.expert.extra={{{key}: 2}}"], f"expert.extra.{key} is 2; it must be left out")
            for key in ("messages", "model", "stream", "n")
        ),
        (["+stages.sort.data.balance=label"], "stages.sort.data.balance is label; it must be null"),
        (["+stages.sort.checkpoint=a/b"], "stages.sort.checkpoint is 'a/b', and stages of kind route read no weights"),
    ],
)
def test_a_route_that_cannot_work_is_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose([*ROUTE, *overrides])
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["stages.sort.data.manifest=a.jsonl"], "stages.sort has a table and data; filter the one or the other"),
        (["stages.sort.right=true", "stages.sort.keep.wrong=true"], "stages.sort.keep.wrong is true; it must be false"),
        (["stages.sort.keep.max_tokens=9"], "stages.sort.keep is set; it must be as in stage/filter: only"),
        (["stages.sort.even.at_most=9"], "stages.sort.even.at_most is 9; it must be null without stages.sort.even.by"),
        ([*ALONE, "stages.sort.mixed=true"], "stages.sort.mixed is true; it must be false without stages.sort.table"),
        ([*ALONE, "stages.sort.min_pass_rate=0.5"], "min_pass_rate is 0.5; it must be null without stages.sort.table"),
        ([*ALONE, "stages.sort.right=true"], "stages.sort.rewards: is missing; they say whether a target is right"),
        ([REWARDS], "stages.sort.rewards is set; it must be null: only stages.sort.right without a table judges"),
        (
            ["stages.sort.min_pass_rate=0.5", "stages.sort.max_pass_rate=0.4"],
            "min_pass_rate is 0.5; it must be at most",
        ),
        (["+stages.sort.prompt={suffix: x}"], "stages.sort.prompt is set; it must be null: no prompt is built"),
        (
            ["+stages.sort.sampling={temperature: 0.5}"],
            "stages.sort.sampling is set; it must be null: nothing is sampled",
        ),
        (["+stages.sort.data.limit=9"], "stages.sort.data.limit is 9; it must be null without manifest and sources"),
        (["stages.sort.even.byy=label"], "stages.sort.even.byy: unknown key; did you mean 'by'?"),
        (["stages.sort.even.at_most=0"], "stages.sort.even.at_most is 0; it must be at least 1"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose([*FILTER, *overrides])
    assert "\n" not in str(caught.value)


def test_keys_of_experts_count_where_one_is_asked():
    traces = ("stages.sort.data.manifest=a.jsonl", "+stages.sort.data.limit=9")
    for asks in (EXPERT, traces):
        stage = compose([*ROUTE, *asks, "stages.sort.tries=2", "stages.sort.prompt={suffix: x}"]).stages["sort"]
        assert (stage.tries, stage.prompt.suffix) == (2, "x")
    assert compose([*ROUTE, "stages.sort.sampling=null"]).stages["sort"].sampling is None


def test_the_sampling_of_a_route_is_that_of_its_config():
    assert compose([*ROUTE, *EXPERT]).stages["sort"].sampling == SAMPLING


@pytest.mark.parametrize(
    ("stage", "overrides", "sentence"),
    [
        (ASK, ["stages.sort.descriptions=null"], "stages.sort.descriptions: is missing; name the stage that described"),
        (ASK, ["stages.sort.fewest_characters=4"], "fewest_characters is 4; it must be as in stage/bridge without"),
        (ASK, ["stages.sort.most_characters=4"], "stages.sort.most_characters is 4; it must be as in stage/bridge"),
        (ASK, ["stages.sort.forbid=[a]"], r"stages.sort.forbid is \['a'\]; it must be as in stage/bridge without"),
        (
            ASK,
            ["+stages.sort.reword={a: b}"],
            "stages.sort.reword is .* without stages.sort.answers: it makes questions",
        ),
        (ASK, [REWARDS], "stages.sort.rewards is set; it must be as in stage/bridge without stages.sort.answers"),
        (ASK, ["stages.sort.wording='{description}'"], "stages.sort.wording is .* must be a text with one {question}"),
        (
            TEACH,
            ["stages.sort.wording='{description} {question}'"],
            "stages.sort.wording is .* as in stage/bridge with",
        ),
        (TEACH, ["stages.sort.rewards=null"], "stages.sort.rewards: is missing; they judge each trace"),
        (TEACH, ["stages.sort.forbid=[' ']"], "stages.sort.reword is ''; it must be phrases that are not blank"),
        (TEACH, ["+stages.sort.data.limit=4"], "stages.sort.data.limit is 4; it must be left out: the tables have"),
        (TEACH, ["+stages.sort.data.balance=label"], "stages.sort.data.balance is label; it must be left out"),
        (TEACH, ["+stages.sort.data.modality_dropout.blank=0.5"], "stages.sort.data.modality_dropout is .* left out"),
        (TEACH, ["+stages.sort.prompt={suffix: x}"], "stages.sort.prompt is set; it must be null: no prompt is built"),
        (TEACH, ["+stages.sort.sampling={temperature: 0.5}"], "stages.sort.sampling is set; it must be null"),
        (TEACH, ["+stages.sort.checkpoint=a/b"], "stages of kind bridge read no weights"),
    ],
)
def test_a_bridge_that_would_ignore_a_key_or_cannot_work_is_refused_in_one_sentence(stage, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose([*stage, *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [(), ("debug=fast",)])
def test_each_step_of_a_bridge_has_its_own_keys(more):
    assert compose([*ASK, "stages.sort.wording='Seen: {description} {question}'", *more]).stages["sort"].answers is None
    found = compose([*TEACH, "stages.sort.forbid=[a]", "stages.sort.fewest_characters=2", *more]).stages["sort"]
    assert (found.forbid, found.fewest_characters) == (["a"], 2)


def content(*overrides):
    return stage_specs(compose([*ROUTE, *EXPERT, *overrides]))[1].digest


def test_how_patiently_an_expert_is_asked_decides_nothing_and_who_is_asked_does():
    before = content()
    assert (
        content("stages.sort.endpoint.base_url=http://other/v1", "+stages.sort.endpoint.request_timeout_s=5") == before
    )
    changes = ("stages.sort.expert.model=other", "stages.sort.tries=2", "stages.sort.sampling.temperature=0.5")
    changes += ("stages.sort.unsolved_at_most=0.5", "stages.draw.num_completions=3", "stages.sort.replay=true")
    assert len({before, *(content(change) for change in changes)}) == 1 + len(changes)


def test_prompts_that_no_model_has_answered_are_those_of_an_earlier_stage():
    spec = stage_specs(compose([*ROUTE, *ASKS, *EXPERT, "stages.sort.keep.truncated=true"]))[1]
    assert spec.inputs == {"prompts": Edge("draw", "own", "manifest")}
    assert spec.outputs == {"expert": "manifest", "unsolved": "manifest", "answers": "table"}


def test_an_endpoint_answers_the_questions_of_a_bridge():
    """In the place of a stage that samples: the table of its answers is what the last step reads."""
    stages = {"ask": "bridge", "sort": "route", "teach": "bridge"}
    specs = stage_specs(
        compose(
            [
                "order=[draw,ask,sort,teach]",
                "+stage@stages.draw=sample",
                *(f"+stage@stages.{name}={kind}" for name, kind in stages.items()),
                "stages.sort.table=null",
                "stages.sort.prompts={stage: ask, artifact: questions}",
                *EXPERT,
                "stages.teach.answers={stage: sort, artifact: answers}",
                "stages.teach.rewards=${stages.draw.rewards}",
            ]
        )
    )
    assert specs[2].inputs == {"prompts": Edge("ask", "questions", "manifest")}
    assert specs[3].inputs["answers"] == Edge("sort", "answers", "table")


def test_a_debug_run_asks_no_endpoint_and_drops_no_prompt():
    said = []
    stage = validated(compose_tree([*ROUTE, *EXPERT, "debug=fast"]), said.append).stages["sort"]
    assert (stage.debugging, stage.expert, stage.endpoint) == (True, None, None)
    more = ("stages.sort.mixed=true", "stages.sort.min_pass_rate=0.5", "debug=fast")
    found = validated(compose_tree([*FILTER, *more]), said.append).stages["sort"]
    assert (found.mixed, found.min_pass_rate, found.keep.wrong) == (False, None, True)
    assert "stages.sort: pass rates and verdicts count for nothing, since this is a debug run" in said
