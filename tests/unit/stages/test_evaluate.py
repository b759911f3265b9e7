"""An evaluation counts what it judged, names what was left out, and gives the headline both ways."""

import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from words import Monitor, in_order, pipeline, row, write, write_media

from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.stream import StreamedSets
from lightning_mmrl.errors import StageError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.stages.answers import AnswerEvaluator, Validation
from lightning_mmrl.stages.evaluate import EvaluatedSet, EvaluationModule, Keeping
from lightning_mmrl.stages.judged import PROGRESS, JudgedBatches
from lightning_mmrl.training.callbacks.progress import EvaluationProgress
from lightning_mmrl.types.records import Completion, Message, Sample

LABELS = ("angry", "sad")
TASK = ClosedLabels(labels=LABELS)
ANSWER = "<think>a smile</think><answer>{}</answer>"


class Engine:
    """Says "sad" to everything."""

    def generate(self, prompts, **_):
        completion = Completion(text=ANSWER.format("sad"), num_tokens=3, truncated=False)
        return type("Rollout", (), {"completions": [completion] * len(prompts.samples)})()


class Prompts:
    """A batch as far as the evaluator looks at it."""

    def __init__(self, *samples):
        self.samples = samples

    def to(self, *_, **__):
        return self


def sample(name, solution):
    return Sample(id=name, messages=(Message(role="user", content="?"),), solution=solution)


def evaluator(task=TASK):
    return AnswerEvaluator(engine=Engine(), task=task)


def evaluated(num_usable, left_out=(), name="test", task=TASK):
    num = num_usable + len(left_out)
    return EvaluatedSet(name=name, num_samples=num, evaluator=evaluator(task), left_out=lambda: left_out)


def module(directory, *sets, **how):
    return EvaluationModule(
        nn.Linear(1, 1),  # type: ignore[arg-type]
        sets=sets,
        directory=directory,
        bootstrap=ClusterBootstrap(settings=EvaluationSettings(num_resamples=20)),
        **how,
    )


SAD, ANGRY = [sample(f"s{index}", "sad") for index in range(6)], [sample(f"a{index}", "angry") for index in range(3)]
LEFT_OUT = ((sample("x", "sad"), "x.wav: too short"), (sample("y", "sad"), "y.wav: broken"))


def results(directory, left_out, **how):
    found = module(directory, evaluated(9, left_out, **how))
    for batch in (SAD[:4], SAD[4:] + ANGRY):
        found.test_step(Prompts(*batch), 0)
    found.on_test_epoch_end()
    written = json.loads((directory / "evaluation.json").read_text())
    assert written == found.results
    return written["test"]


def test_without_exclusions_there_is_one_headline(tmp_path):
    found = results(tmp_path, ())
    assert found["num_samples"] == 9
    assert found["left_out"] == []
    assert set(found["intervals"]) == {"war", "uar"}
    assert [key for key in found["metrics"] if "wrong" in key] == []


def test_an_excluded_sample_is_named_and_the_headline_comes_both_ways(tmp_path):
    """6 of 6 sad and 0 of 3 angry are right; with two sad ones as wrong, 6 of 8 and 0 of 3."""
    found, without = results(tmp_path / "with", LEFT_OUT), results(tmp_path / "without", ())
    assert found["num_samples"] == 9
    assert found["left_out"] == [
        {"sample_id": "x", "reason": "x.wav: too short"},
        {"sample_id": "y", "reason": "y.wav: broken"},
    ]
    assert {key: found["metrics"][key] for key in without["metrics"]} == without["metrics"]
    assert {key: found["intervals"][key] for key in without["intervals"]} == without["intervals"]
    wrong = {key: value for key, value in found["metrics"].items() if key not in without["metrics"]}
    assert wrong == pytest.approx(
        {"war_counted_wrong": 6 / 11, "uar_counted_wrong": (6 / 8) / 2, "valid_format_counted_wrong": 9 / 11}
    )
    assert found["intervals"]["uar_counted_wrong"]["estimate"] == pytest.approx(0.375)
    assert len((tmp_path / "with" / "test.jsonl").read_text().splitlines()) == 9


def test_a_class_of_which_everything_was_left_out_counts_in_the_average(tmp_path):
    found = module(tmp_path, evaluated(6, left_out=((sample("x", "angry"), "broken"),)))
    found.test_step(Prompts(*SAD), 0)
    found.on_test_epoch_end()
    metrics = found.results["test"]["metrics"]
    assert (metrics["uar"], metrics["uar_counted_wrong"]) == (1.0, 0.5)


def test_grounding_counts_both_ways_where_thoughts_are_judged(tmp_path):
    cues = {"face": {"smile": ["a smile"], "frown": ["a frown"]}}
    lexicon = {"labels": LABELS, "cues": cues, "cue_to_label": {"smile": "sad", "frown": "angry"}}
    (tmp_path / "labels.json").write_text(json.dumps(lexicon))
    task = ClosedLabels(labels=LABELS, cue_lexicon=str(tmp_path / "labels.json"))
    metrics = results(tmp_path, LEFT_OUT, task=task)["metrics"]
    assert (metrics["grounded"], metrics["consistency"]) == pytest.approx((6 / 9, 1.0))
    assert metrics["grounded_counted_wrong"] == pytest.approx(6 / 11)
    assert metrics["consistency_counted_wrong"] == pytest.approx(9 / 11)


def test_each_set_is_judged_by_its_own_task(tmp_path):
    quiz = MultipleChoice(reader=ChoiceAnswer())
    found = module(
        tmp_path, evaluated(6), evaluated(2, name="quiz", task=quiz, left_out=((sample("q9", "A"), "broken"),))
    )
    found.test_step(Prompts(*SAD), 0, 0)
    found.test_step(Prompts(sample("q1", "A"), sample("q2", "B")), 0, 1)
    found.on_test_epoch_end()
    assert "task" not in found.results["test"]
    assert found.results["quiz"]["task"]["type"] == "multiple-choice"
    assert found.results["quiz"]["metrics"] == pytest.approx(
        {"accuracy": 0.0, "valid_format": 1.0, "unparseable": 1.0}
        | {"accuracy_counted_wrong": 0.0, "valid_format_counted_wrong": 2 / 3}
    )
    assert set(found.results["quiz"]["intervals"]) == {"accuracy", "accuracy_counted_wrong"}
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "test.jsonl", "test.png", "quiz.jsonl"}


@pytest.mark.parametrize("judged", [0, 1, 8, 10])
def test_an_evaluation_of_another_number_of_samples_is_an_error_and_writes_nothing(tmp_path, judged):
    found = module(tmp_path / "out", evaluated(9, left_out=LEFT_OUT))
    for each in [*SAD, *ANGRY, sample("z", "sad")][:judged]:
        found.test_step(Prompts(each), 0)
    with pytest.raises(StageError, match=f"the evaluation on test judged {judged} of 9 samples: its loop ended early"):
        found.on_test_epoch_end()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("judged", [0, 4, 8])
def test_a_validation_of_fewer_samples_is_an_error(judged):
    validation = Validation(evaluator(), num_samples=lambda: 9)
    if judged:
        validation.step(Prompts(*[*SAD, *ANGRY][:judged]))
    with pytest.raises(StageError, match=f"the validation judged {judged} of 9 samples"):
        validation.finish()
    whole = Validation(evaluator(), num_samples=lambda: 9)
    whole.step(Prompts(*SAD, *ANGRY))
    assert whole.finish()["war"] == pytest.approx(6 / 9)


class Short(torch.utils.data.Dataset):
    """As a data set without a wall: its third item raises what a loop takes for the end."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == 2:
            next(iter(()))
        return SAD[index]


def run_test(module, loaders, tmp_path, callbacks=()):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=[*callbacks], **quiet
    )
    trainer.test(module, dataloaders=loaders, verbose=False)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_loop_that_lightning_ends_in_silence_does_not_pass_for_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_mmrl.stages.evaluate.place", lambda *_: None)
    judging = module(tmp_path, evaluated(5))
    loader = DataLoader(Short(), batch_size=1, collate_fn=lambda items: Prompts(*items))
    with pytest.raises(StageError, match="the evaluation on test judged 2 of 5 samples"):
        run_test(judging, [loader], tmp_path)


def test_a_sample_that_is_found_damaged_while_lightning_tests_is_left_out_and_the_others_are_judged(
    tmp_path, monkeypatch
):
    """Also if it raises what a loop would take for its end; the last batch then does not exist."""
    monkeypatch.setattr("lightning_mmrl.stages.evaluate.place", lambda *_: None)
    root, parts = write_media(tmp_path / "set"), pipeline(tmp_path)
    samples = read_manifest(write(root, *[row(name, text=f"Which {name}?") for name in "abcdefg"]), root)
    prepared = PreparedSet(samples, media_root=root, pipeline=parts, template=PromptTemplate(), supervised=False)
    original = parts.encoder.encode_prompt

    def ends(messages, *arguments):
        if messages[-1].content in ("Which b?", "Which g?"):
            raise StopIteration
        return original(messages, *arguments)

    monkeypatch.setattr(parts.encoder, "encode_prompt", ends)
    sets = StreamedSets([("train.jsonl", prepared)], Monitor())
    both = [
        EvaluatedSet(name=name, num_samples=7, evaluator=evaluator(), left_out=sets.left_out) for name in ("x", "y")
    ]
    judging = module(tmp_path, *both)
    loaders = [in_order(sets, batch_size=2, prefetch=prefetch) for prefetch in (0, 64)]
    assert [len(loader) for loader in loaders] == [4, 4]
    steps = []
    console = SimpleNamespace(update=lambda *step: steps.append(step[:3]))
    run_test(judging, loaders, tmp_path, [EvaluationProgress(console, "testing")])
    assert steps == [*[("testing", done, 8) for done in range(1, 7)], ("testing", 6, 6)]  # which ends the bar
    for name in "xy":
        assert judging.results[name]["num_samples"] == 5
        assert [each["sample_id"] for each in judging.results[name]["left_out"]] == ["b", "g"]
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["sample_id"] for line in lines] == list("acdef")


BOUND = {"common": {"seed": 0}, "sets": {"test": {}, "quiz": {}}}


def keeping(folder):
    found = Keeping(batches=JudgedBatches(folder / PROGRESS), bound=BOUND)
    found.batches.begin(BOUND, found.batches.read()[1])
    return found


def pair(num, kept, task, folder):
    """Two sets, of which the first one's batches are all judged after two."""
    test = evaluated(num)
    quiz = evaluated(num, name="quiz", task=task)
    sets = [
        EvaluatedSet(
            name=each.name,
            num_samples=num,
            evaluator=each.evaluator,
            kept=kept.get(each.name, ()),
            has_loader=len(kept.get(each.name, ())) < 2,
        )
        for each in (test, quiz)
    ]
    return module(folder, *sets, keeping=keeping(folder))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("done", range(5))
def test_what_was_judged_before_an_interruption_counts_as_if_there_had_been_none(tmp_path, done):
    """Killed after so many of the two batches of each set; also after all, before the results were written."""
    steps = [(SAD[:4], 0), (SAD[4:] + ANGRY, 0), (SAD[:4], 1), (SAD[4:] + ANGRY, 1)]
    whole, cut = (pair(9, {}, TASK, tmp_path / name) for name in ("whole", "cut"))
    for batch, number in steps:
        whole.test_step(Prompts(*batch), 0, number)
    whole.on_test_epoch_end()
    for batch, number in steps[:done]:
        cut.test_step(Prompts(*batch), 0, number)
    bound, kept = JudgedBatches(tmp_path / "cut" / PROGRESS).read()
    assert bound == BOUND
    assert sum(len(batches) for batches in kept.values()) == done
    again = pair(9, kept, TASK, tmp_path / "cut")
    for batch, number in steps[done:]:
        again.test_step(Prompts(*batch), 0, number - (done >= 2))  # a set without a loader has no number
    again.on_test_epoch_end()
    assert again.results == whole.results
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "cut" / "evaluated.json").read_text()) == BOUND
    assert not (tmp_path / "cut" / PROGRESS).exists()


def test_results_that_are_half_replaced_say_no_longer_what_they_are_of(tmp_path, monkeypatch):
    pair(6, {"test": [[]] * 2, "quiz": [[]] * 2}, TASK, tmp_path)
    (tmp_path / "evaluated.json").write_text("{}")
    judging = module(tmp_path, evaluated(6), keeping=keeping(tmp_path))
    judging.test_step(Prompts(*SAD), 0)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TASK.__class__, "save_figure", killed)
    with pytest.raises(KeyboardInterrupt):
        judging.on_test_epoch_end()
    assert {path.name for path in tmp_path.iterdir()} == {"test.jsonl", PROGRESS}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_batch_that_is_expected_after_the_kept_ones_may_turn_out_to_be_none(tmp_path, monkeypatch):
    """The samples after the last kept batch are all unusable, which an interrupted evaluation had not found yet."""
    monkeypatch.setattr("lightning_mmrl.stages.evaluate.place", lambda *_: None)
    root, parts = write_media(tmp_path / "set"), pipeline(tmp_path)
    samples = read_manifest(write(root, *[row(name, text=f"Which {name}?") for name in "abc"]), root)
    prepared = PreparedSet(samples, media_root=root, pipeline=parts, template=PromptTemplate(), supervised=False)
    original = parts.encoder.encode_prompt

    def refusing(messages, *arguments):
        if messages[-1].content == "Which c?":
            raise StopIteration
        return original(messages, *arguments)

    monkeypatch.setattr(parts.encoder, "encode_prompt", refusing)
    sets = StreamedSets([("train.jsonl", prepared)], Monitor())
    loader = in_order(sets, batch_size=2, first=1)
    assert len(loader) == 1
    kept = [[evaluator().evaluate(Prompts(sample("a", "sad"), sample("b", "sad")))[n] for n in (0, 1)]]
    only = EvaluatedSet(name="x", num_samples=3, evaluator=evaluator(), left_out=sets.left_out, kept=kept)
    judging = module(tmp_path / "out", only)
    run_test(judging, [loader], tmp_path)
    assert judging.results["x"]["num_samples"] == 2
    assert [each["sample_id"] for each in judging.results["x"]["left_out"]] == ["c"]
