"""Evaluations beside the greedy answer: several samples of each question, and answers that are denied a thought."""

import json
from dataclasses import dataclass, field, replace

import omni
import pytest
import torch
from torch import nn

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.errors import RolloutError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.sampled import SampledAnswers
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.prompts.no_think import without_thought
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.evaluate import EvaluatedSet, EvaluationModule
from lightning_mmrl.stages.sampled_answers import SampledEvaluator
from lightning_mmrl.types.records import Completion, Message, Sample

TASK = ClosedLabels(labels=("angry", "sad"))
FORCED = without_thought(PromptSettings(), "tag").prefill
CONTENTS = ("<audio>Which emotion?", "Which emotion? angry, user", "<video>Which emotion?")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")))


@pytest.fixture(scope="module")
def items(model):
    return [omni.encoded(model[0], f"p{index}", content, index) for index, content in enumerate(CONTENTS)]


@dataclass
class Counting:
    """An engine that counts what it is asked for."""

    engine: object
    calls: list = field(default_factory=list)
    temperatures: list = field(default_factory=list)

    def generate(self, prompts, **how):
        self.calls.append((len(prompts.samples), how["group_size"], how.get("greedy", False)))
        self.temperatures.append(self.engine.policy.temperature)
        return self.engine.generate(prompts, **how)


def sampler(model, samples, *, temperature=1.3, seed=4, top_p=1.0):
    encoder, policy = model
    engine = Counting(omni.engine(encoder, policy, max_new_tokens=6, top_p=top_p))
    return SampledEvaluator(
        engine=engine,
        task=SampledAnswers(whole=TASK, num_answers=samples),
        policy=policy,
        settings=EvaluationSettings(temperature=temperature),
        run_seed=seed,
    )


def texts(found):
    return {each.sample_id: [one.text for one in each.completions] for each in found}


def batch(model, items):
    return collate_prompts(items, model[0].pad_token_id)


def test_an_answer_depends_on_seed_question_and_number_alone(model, items):
    whole = texts(sampler(model, 4).evaluate(batch(model, items)))
    alone = {
        key: value for item in items for key, value in texts(sampler(model, 4).evaluate(batch(model, [item]))).items()
    }
    fewer = texts(sampler(model, 2).evaluate(batch(model, items[::-1])))
    assert whole == alone
    assert fewer == {name: answers[:2] for name, answers in whole.items()}
    assert len({text for answers in whole.values() for text in answers}) > 6
    assert texts(sampler(model, 4, seed=5).evaluate(batch(model, items))) != whole
    assert texts(sampler(model, 4, temperature=0.5).evaluate(batch(model, items))) != whole
    assert texts(sampler(model, 4, top_p=0.3).evaluate(batch(model, items))) != whole


def test_samples_are_those_of_a_rollout_with_one_prefill_for_all_answers_of_a_question(model, items):
    encoder, policy = model
    evaluator = sampler(model, 4)
    found = texts(evaluator.evaluate(batch(model, items)))
    assert evaluator.engine.calls == [(3, 4, False)]
    policy.temperature = 1.3
    seeds = group_seeds(4, 0, [item.sample.id for item in items], 4)
    rollout = omni.engine(encoder, policy, max_new_tokens=6).generate(batch(model, items), group_size=4, seeds=seeds)
    policy.temperature = 1.0
    said = [each.text for each in rollout.completions]
    assert found == {item.sample.id: said[4 * place : 4 * place + 4] for place, item in enumerate(items)}


def test_the_policy_gets_its_temperature_back_also_after_a_failure(model, items):
    evaluator = sampler(model, 2)
    evaluator.evaluate(batch(model, items))
    assert evaluator.engine.temperatures == [1.3]
    assert evaluator.policy.temperature == 1.0

    class Fails:
        def generate(self, prompts, **how):
            raise RolloutError("the server is gone")

    with pytest.raises(RolloutError, match="the server is gone"):
        replace(evaluator, engine=Fails()).evaluate(batch(model, items))
    assert evaluator.policy.temperature == 1.0


def test_a_distribution_that_is_not_finite_ends_the_evaluation(model, items):
    class Broken:
        def generate(self, prompts, **how):
            rollout = omni.engine(*model, max_new_tokens=2).generate(prompts, **how)
            values = rollout.sampler_logprobs.clone()
            values[3, 0] = torch.nan
            return replace(rollout, sampler_logprobs=values)

    with pytest.raises(RolloutError, match="no finite probabilities for sample p1"):
        replace(sampler(model, 2), engine=Broken()).evaluate(batch(model, items))


def forced_item(encoder, item):
    """The same question, encoded with a prefill that leaves only the answer."""
    prompt = encoder.encode_prompt(item.sample.messages, FORCED, ())
    return EncodedSample(sample=item.sample, prompt=prompt)


def test_no_token_of_the_prefill_is_sampled_and_all_of_it_is_judged(model):
    encoder, policy = model
    item = omni.encoded(encoder, "p", "Which emotion? angry, user", 0)
    forced = forced_item(encoder, item)
    opened = encoder.encode_target(FORCED)[:-1]  # without the end token
    assert forced.prompt["input_ids"].tolist() == [*item.prompt["input_ids"].tolist(), *opened]
    engine = omni.engine(encoder, policy, max_new_tokens=5, prefill=FORCED)
    prompts = batch(model, [forced])
    rollout = engine.generate(prompts, group_size=1, seeds=[[0]], greedy=True)
    ids = rollout.completion_ids[0][rollout.completion_mask[0]].tolist()
    evaluator = AnswerEvaluator(engine=engine, task=TASK, thoughtless=True)
    [judged] = evaluator.evaluate(prompts)
    assert judged.text == FORCED + encoder.decode(ids)
    assert judged.num_tokens == len(ids) <= 5
    free = omni.engine(encoder, policy, max_new_tokens=5).generate(
        batch(model, [item]), group_size=1, seeds=[[0]], greedy=True
    )
    assert encoder.decode(free.completion_ids[0].tolist()) != encoder.decode(ids)


class Says:
    """Answers with the prefill of its template and a text for each sample."""

    def __init__(self, answers, prefill=""):
        self.answers, self.template = answers, PromptTemplate(PromptSettings(prefill=prefill))

    def generate(self, prompts, **_):
        found = [self.answers[sample.id] for sample in prompts.samples]
        completions = [
            Completion(text=self.template.complete(text), num_tokens=len(text.split()), truncated=False)
            for text in found
        ]
        return type("Rollout", (), {"completions": completions})()


class Prompts:
    """A batch as far as the evaluator looks at it."""

    def __init__(self, samples):
        self.samples = samples

    def to(self, *_, **__):
        return self


SAMPLES = [
    Sample(id=f"c{place}", messages=(Message(role="user", content="?"),), solution="sad", speaker=f"s{place % 4}")
    for place in range(8)
]


def evaluated(directory, left_out=()):
    """All thoughts lead to the answer, and half of the forced answers are wrong; one of them breaks the format."""
    thinking = {sample.id: "<think> a face </think> <answer>sad</answer>" for sample in SAMPLES}
    forced = {sample.id: "sad</answer>" if place % 2 else "angry</answer>" for place, sample in enumerate(SAMPLES)}
    forced["c1"] = "sad</answer> or not"
    usual = AnswerEvaluator(engine=Says(thinking), task=TASK)
    denied = AnswerEvaluator(engine=Says(forced, FORCED), task=TASK, thoughtless=True)
    usable = [sample for sample in SAMPLES if sample.id not in left_out]
    module = EvaluationModule(
        nn.Linear(1, 1),
        sets=[
            EvaluatedSet(name="test", num_samples=8, evaluator=usual),
            EvaluatedSet(
                name="test-no_think",
                num_samples=8,
                evaluator=denied,
                thinks_in="test",
                left_out=lambda: [(sample, "too long") for sample in SAMPLES if sample.id in left_out],
            ),
        ],
        directory=directory,
        bootstrap=ClusterBootstrap(settings=EvaluationSettings(num_resamples=20)),
    )
    module.test_step(Prompts(SAMPLES), 0, 0)
    module.test_step(Prompts(usable), 0, 1)
    module.on_test_epoch_end()
    return json.loads((directory / "evaluation.json").read_text())


def test_answers_without_a_thought_stand_beside_the_others_with_their_paired_difference(tmp_path):
    found = evaluated(tmp_path)
    assert "thinking" not in found["test"]
    thinking = found["test-no_think"]["thinking"]
    assert (thinking["over"], thinking["headline"], thinking["num_unpaired"]) == ("test", "uar", 0)
    assert thinking["difference"]["estimate"] == pytest.approx(0.5)
    assert thinking["difference"]["unit"] == "speaker"
    assert (thinking["mean_tokens"], thinking["mean_tokens_no_think"]) == (5.0, (7 * 1 + 3) / 8)
    assert found["test-no_think"]["metrics"]["valid_format"] == 7 / 8
    lines = (tmp_path / "test-no_think.jsonl").read_text().splitlines()
    judged = [Judgement.from_json(line) for line in lines]
    assert all(each.text.startswith("<think></think><answer>") for each in judged)
    assert [each.num_tokens for each in judged] == [1, 3, 1, 1, 1, 1, 1, 1]


def test_samples_that_only_one_of_both_could_use_are_left_out_of_the_difference(tmp_path):
    thinking = evaluated(tmp_path, left_out=("c0", "c1"))["test-no_think"]["thinking"]
    assert thinking["num_unpaired"] == 2
    assert thinking["difference"]["estimate"] == pytest.approx(0.5)
    assert thinking["mean_tokens_no_think"] == 1.0


def test_without_these_passes_a_line_of_predictions_has_no_key_of_theirs(tmp_path):
    evaluator = AnswerEvaluator(engine=Says({sample.id: "sad" for sample in SAMPLES}), task=TASK)
    lines = [each.to_json() for each in evaluator.evaluate(Prompts(SAMPLES))]
    assert {tuple(json.loads(line)) for line in lines} == {
        ("sample_id", "speaker", "truth", "predicted", "valid_format", "consistent", "text", "num_tokens", "truncated")
    }
