"""Drawn faces and voices: shapes, what they depend on, and that they can be told apart but not perfectly."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_mmrl.data.synthetic import faces, voices
from lightning_mmrl.data.synthetic.factors import FACE_GROUPS, VOICE_GROUPS, group_of
from lightning_mmrl.data.synthetic.plan import ClipPlan, plan_split, render_signals
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings, SplitSizes, Style

PLAN = ClipPlan(seed=0, split="train", index=3, part="", label="angry", speaker=1)


def test_frames_and_waveform_have_the_promised_shape() -> None:
    frames, waveform = render_signals(PLAN, Style())
    assert frames.shape == (12, 112, 112, 3)
    assert frames.dtype == np.uint8
    assert waveform.shape == (24_000,)
    assert waveform.dtype == np.float32
    assert np.abs(waveform).max() <= 1.0


@pytest.mark.parametrize(
    ("other", "same_face", "same_voice"),
    [("disgust", True, False), ("happy", False, True), ("sad", False, False)],
)
def test_a_modality_sees_only_its_own_group(other: str, same_face: bool, same_voice: bool) -> None:
    frames, waveform = render_signals(PLAN, Style())
    other_frames, other_waveform = render_signals(replace(PLAN, label=other), Style())
    assert np.array_equal(frames, other_frames) is same_face
    assert np.array_equal(waveform, other_waveform) is same_voice


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}, {"index": 4}, {"speaker": 2}])
def test_every_coordinate_of_a_clip_changes_both_modalities(change: dict[str, int | str]) -> None:
    frames, waveform = render_signals(PLAN, Style())
    other_frames, other_waveform = render_signals(replace(PLAN, **change), Style())
    assert not np.array_equal(frames, other_frames)
    assert not np.array_equal(waveform, other_waveform)


def test_the_face_moves_and_the_other_style_differs() -> None:
    frames, waveform = render_signals(PLAN, Style(face=faces.FaceStyle(pixel_noise=0.0)))
    assert not np.array_equal(frames[0], frames[-1])
    other = EmotionSetSettings().ood_style
    other_frames, other_waveform = render_signals(PLAN, other)
    assert not np.array_equal(frames, other_frames)
    assert not np.array_equal(waveform, other_waveform)


def test_voices_of_the_other_style_lie_outside_the_pitches_of_training() -> None:
    def pitches_hz(style: voices.VoiceStyle) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.array([voices.draw_identity(style, rng).base_pitch_hz for _ in range(60)])

    usual, other = pitches_hz(voices.VoiceStyle()), pitches_hz(voices.OTHER_VOICE_STYLE)
    assert usual.min() >= 110
    assert usual.max() <= 260
    assert not ((other >= 110) & (other <= 260)).any()
    assert (other < 110).any()
    assert (other > 260).any()


def face_features(frames: np.ndarray) -> np.ndarray:
    """The brow, eye and mouth rows of the last frames in 14 x 14 gray cells, without their mean."""
    gray = frames[6:].mean(axis=(0, 3)).reshape(14, 8, 14, 8).mean(axis=(1, 3))
    return (gray - gray.mean()).ravel()


def voice_features(waveform: np.ndarray) -> np.ndarray:
    """The log spectrum (200 Hz cells up to 4 kHz) of five parts of the clip."""
    parts = np.abs(np.fft.rfft(waveform.reshape(5, 4800))) ** 2
    return np.log10(parts[:, :1200].reshape(5, 20, 60).mean(axis=2) + 1e-6).ravel()


def held_out_recall(modality: str) -> float:
    """Train a ridge classifier of the groups on 420 clips and return its unweighted recall on 140 of other speakers."""
    settings = EmotionSetSettings(sizes=SplitSizes(train=420, test=140))
    groups = FACE_GROUPS if modality == "face" else VOICE_GROUPS
    names = list(groups)

    def table(split: str) -> tuple[np.ndarray, np.ndarray]:
        plans = plan_split(settings, split)
        signals = [render_signals(plan, settings.style) for plan in plans]
        rows = [face_features(frames) if modality == "face" else voice_features(wave) for frames, wave in signals]
        return np.array(rows), np.array([names.index(group_of(plan.label, groups)) for plan in plans])

    train_x, train_y = table("train")
    test_x, test_y = table("test")
    mean, spread = train_x.mean(axis=0), train_x.std(axis=0) + 1e-6
    inputs = np.column_stack([(train_x - mean) / spread, np.ones(len(train_x))])
    targets = np.eye(len(names))[train_y] / np.bincount(train_y)[train_y, None]
    weights = np.linalg.solve(inputs.T @ inputs + 30.0 * np.eye(inputs.shape[1]), inputs.T @ targets)
    answers = (np.column_stack([(test_x - mean) / spread, np.ones(len(test_x))]) @ weights).argmax(axis=1)
    return float(np.mean([(answers[test_y == group] == group).mean() for group in range(len(names))]))


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["face", "voice"])
def test_groups_are_learnable_but_not_trivial_on_held_out_speakers(modality: str) -> None:
    recall = held_out_recall(modality)
    assert 0.40 < recall < 1.0, recall
