"""The modality report tells models apart that see, hear, do both, guess, or say what they do not use.

The models are scripts. A sample shows a face and has a voice, each of two groups, and each pair is one of four labels.
"""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Units
from lightning_mmrl.evaluation.modality import Answered, modality_report, verdict
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.conflicts import Conflicts
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.types.records import Completion, Sample

FACES, VOICES = ("lowered brows", "smile"), ("fast tone", "shaky tone")
LABELS = {("lowered brows", "fast tone"): "angry", ("smile", "fast tone"): "happy"}
LABELS |= {("lowered brows", "shaky tone"): "sad", ("smile", "shaky tone"): "fear"}
CUES = {"face": {each: [each] for each in FACES}, "voice": {each: [each] for each in VOICES}}
VARIANTS = ("full", "silent", "blank", "text_only", "shuffled_sound", "shuffled_picture")
BOOTSTRAP = ClusterBootstrap(settings=EvaluationSettings(num_resamples=500))
UNITS = Units(unit="speaker", index=np.arange(20), number=20, reliable=True)


@dataclass(frozen=True)
class Model:
    """Uses the face, the voice, or both, and draws what it does not use; `names` are what its thoughts name."""

    sees: bool
    hears: bool
    names: tuple[str, ...] = ("face", "voice")
    seed: int = 0

    def answer(self, number, face, voice):
        """The completion to an input in which a medium may be missing (None)."""
        drawn = np.random.default_rng([self.seed, number])  # the same for all variants: decoding is greedy
        guess = FACES[drawn.integers(2)], VOICES[drawn.integers(2)]
        face = face if self.sees and face else guess[0]
        voice = voice if self.hears and voice else guess[1]
        think = " and ".join({"face": face, "voice": voice}[name] for name in self.names)
        return f"<think>{think}</think><answer>{LABELS[face, voice]}</answer>"


MODELS = {
    "both": Model(sees=True, hears=True),
    "sees": Model(sees=True, hears=False),
    "hears": Model(sees=False, hears=True),
    "guesses": Model(sees=False, hears=False),
    "honest": Model(sees=True, hears=False, names=("face",)),
    "liar": Model(sees=True, hears=False, names=("voice",)),
}


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    path = tmp_path_factory.mktemp("cues") / "labels.json"
    combined = {"+".join(pair): label for pair, label in LABELS.items()}
    path.write_text(json.dumps({"labels": list(LABELS.values()), "cues": CUES, "cue_to_label": combined}))
    return str(path)


def shown(number, variant):
    """Face and voice of a sample in a variant; the partner of a sample is 21 places further."""
    pairs = list(LABELS)
    face, voice = pairs[number % 4]
    other_face, other_voice = pairs[(number + 21) % 4]
    return {
        "full": (face, voice),
        "silent": (face, None),
        "blank": (None, voice),
        "text_only": (None, None),
        "shuffled_sound": (face, other_voice),
        "shuffled_picture": (other_face, voice),
    }[variant]


def answered(task, name, whole, samples, texts):
    judgements = [
        task.judge(sample, Completion(text=text, num_tokens=9, truncated=False))
        for sample, text in zip(samples, texts, strict=True)
    ]
    intervals = {key: vars_of(each) for key, each in BOOTSTRAP.intervals(judgements, task).items()}
    result = {"metrics": task.metrics(judgements), "intervals": intervals}
    return Answered(name=name, whole=whole, task=task, judgements=judgements, result=result)


def vars_of(interval):
    return {name: getattr(interval, name) for name in ("estimate", "low", "high", "level", "num_resamples", "unit")}


def report(model, lexicon, variants=VARIANTS, num=200):
    task = ClosedLabels(labels=tuple(LABELS.values()), cue_lexicon=lexicon)
    samples = [
        Sample(id=f"s{number}", messages=(), speaker=f"p{number // 8}", solution=LABELS[shown(number, "full")])
        for number in range(num)
    ]
    found = [
        answered(
            task,
            "test" if variant == "full" else f"test-{variant}",
            "test",
            samples,
            [model.answer(number, *shown(number, variant)) for number in range(num)],
        )
        for variant in variants
    ]
    conflicts = Conflicts(labels=tuple(LABELS.values()), cue_lexicon=lexicon)
    pairs = [(FACES[number % 2], VOICES[number // 2 % 2]) for number in range(num)]
    against = [
        Sample(
            id=f"c{number}",
            messages=(),
            speaker=f"p{number // 8}",
            extras={
                "picture_truth": [LABELS[face, other] for other in VOICES if other != voice],
                "sound_truth": [LABELS[other, voice] for other in FACES if other != face],
            },
        )
        for number, (face, voice) in enumerate(pairs)
    ]
    texts = [model.answer(number + 1000, *pair) for number, pair in enumerate(pairs)]
    found.append(answered(conflicts, "conflict", "conflict", against, texts))
    return modality_report(found, BOOTSTRAP)


@pytest.mark.parametrize(
    ("name", "looks", "listens", "follows"),
    [
        ("both", "yes", "yes", "not_shown"),
        ("sees", "yes", "not_shown", "picture"),
        ("hears", "not_shown", "yes", "sound"),
        ("guesses", "not_shown", "not_shown", "not_shown"),
    ],
)
def test_models_of_one_modality_and_a_guesser_are_told_apart(name, looks, listens, follows, lexicon):
    found = report(MODELS[name], lexicon)
    verdicts = found["sets"]["test"]["verdict"]
    assert (verdicts["picture"]["verdict"], verdicts["sound"]["verdict"]) == (looks, listens)
    assert verdicts["picture"]["by"] == "shuffled_picture"
    assert found["conflicts"]["conflict"]["follows"] == follows


def test_a_drop_is_paired_and_the_headlines_of_all_variants_are_there(lexicon):
    found = report(MODELS["sees"], lexicon)["sets"]["test"]
    assert set(found["variants"]) == set(VARIANTS)
    assert set(found["drops"]) == set(VARIANTS) - {"full"}
    for name, drop in found["drops"].items():
        lost = found["variants"]["full"]["estimate"] - found["variants"][name]["estimate"]
        assert drop["estimate"] == pytest.approx(lost)
    assert found["drops"]["silent"] == {**found["drops"]["silent"], "estimate": 0.0, "low": 0.0, "high": 0.0}
    json.dumps(found, allow_nan=False)


def test_a_deleted_cue_changes_the_answers_of_the_model_that_used_it(lexicon):
    """Both name face and voice always, so there is nothing unnamed to compare with."""
    for name, used, unused in (("sees", "picture", "sound"), ("hears", "sound", "picture")):
        found = report(MODELS[name], lexicon)["sets"]["test"]["faithfulness"]
        assert found[used]["num_named"] == found[unused]["num_named"] == 200
        assert found[used]["named"]["low"] > 0.3
        assert found[unused]["named"]["high"] == 0.0
        assert (found["all"]["num_unnamed"], found["all"]["unnamed"], found["all"]["difference"]) == (0, None, None)


def test_a_thought_that_names_what_is_not_used_is_unfaithful(lexicon):
    honest = report(MODELS["honest"], lexicon)["sets"]["test"]["faithfulness"]["all"]
    liar = report(MODELS["liar"], lexicon)["sets"]["test"]["faithfulness"]["all"]
    assert honest["difference"]["low"] > 0
    said = report(MODELS["honest"], lexicon)["sets"]["test"]["faithfulness"]
    assert said["sound"]["says"].startswith(
        "No thought names a cue of the sound; without it, 0.0 % [0.0, 0.0] of the 200"
    )
    assert said["picture"]["says"].endswith("of the 200 answers change whose thought names its cue.")
    assert liar["difference"]["high"] < 0
    guesser = report(Model(sees=False, hears=False, names=("face",)), lexicon)["sets"]["test"]["faithfulness"]["all"]
    assert guesser["difference"] == {**guesser["difference"], "estimate": 0.0, "low": 0.0, "high": 0.0}


def test_swapped_predictions_swap_the_verdicts(lexicon):
    """The control: if a file of the silent variant held the blank one's answers, the verdicts would follow it."""
    both = {name: report(MODELS[name], lexicon, ("full", "silent", "blank"))["sets"]["test"] for name in MODELS}
    verdicts = {name: (found["verdict"]["picture"], found["verdict"]["sound"]) for name, found in both.items()}
    assert [each["by"] for each in verdicts["sees"]] == ["blank", "silent"]
    assert [each["verdict"] for each in verdicts["sees"]] == ["yes", "not_shown"]
    assert [each["verdict"] for each in verdicts["hears"]] == ["not_shown", "yes"]


def test_what_was_not_evaluated_is_said_and_nothing_else(lexicon):
    found = report(MODELS["both"], lexicon, ("full", "shuffled_sound"))["sets"]["test"]
    assert found["verdict"]["picture"] == {
        "verdict": "not_evaluated",
        "by": None,
        "says": "Whether it looks was not evaluated.",
    }
    assert found["faithfulness"] is None
    assert report(MODELS["both"], lexicon, ("full",))["sets"] == {}


def test_without_variants_and_conflicts_there_is_no_report(lexicon):
    task = ClosedLabels(labels=tuple(LABELS.values()))
    sample = Sample(id="a", messages=(), solution="sad")
    assert modality_report([answered(task, "test", "test", [sample], [""])], BOOTSTRAP) is None


def test_a_task_that_reads_no_thoughts_has_no_faithfulness():
    task = ClosedLabels(labels=tuple(LABELS.values()))
    samples = [Sample(id=str(number), messages=(), solution="sad") for number in range(4)]
    found = [answered(task, name, "test", samples, [""] * 4) for name in ("test", "test-silent", "test-blank")]
    assert modality_report(found, BOOTSTRAP)["sets"]["test"]["faithfulness"] is None


@pytest.mark.parametrize(
    ("low", "high", "found", "begins"),
    [
        (0.01, 0.2, "yes", "It listens: with the sound of another sample, UAR falls by 10.0 points [1.0, 20.0]."),
        (0.0, 0.2, "not_shown", "It was not shown to listen: "),
        (-0.3, -0.1, "hindered", "It is better off if it does not listen: "),
    ],
)
def test_the_verdict_is_whether_the_interval_excludes_zero(low, high, found, begins):
    interval = BOOTSTRAP._interval(0.1, np.array([low, high]), UNITS)
    interval = type(interval)(**{**vars_of(interval), "low": low, "high": high})
    said = verdict("sound", {"shuffled_sound": interval, "silent": interval}, "UAR")
    assert said["verdict"] == found
    assert said["says"].startswith(begins)


def test_by_chance_is_what_a_guesser_follows(lexicon):
    found = report(MODELS["guesses"], lexicon, num=800)["conflicts"]["conflict"]
    for sense in ("picture", "sound"):
        share = found["shares"][f"follows_{sense}"]
        assert share["low"] < found["by_chance"][sense] < share["high"]
