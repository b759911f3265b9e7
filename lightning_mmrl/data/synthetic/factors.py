"""The factors of the generated emotion set: seven emotions, the face and voice group of each, and words for the groups.

The face of a clip depends only on the label's face group, and the voice only on the label's voice group. Emotions of
one group therefore look alike, or sound alike, while each pair (face group, voice group) belongs to exactly one
emotion.
"""

from collections.abc import Mapping

LABEL_SET = "dfew7"
LABELS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")

FACE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "lowered": ("angry", "disgust"),
    "raised": ("fear", "surprise"),
    "still": ("sad", "neutral"),
    "smile": ("happy",),
}
VOICE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "fast": ("angry", "happy"),
    "shaky": ("fear", "sad"),
    "flat": ("disgust", "neutral"),
    "rising": ("surprise",),
}

FACE_WORDINGS: Mapping[str, tuple[str, str]] = {
    "lowered": ("lowered brows", "knitted brows"),
    "raised": ("raised brows", "wide eyes"),
    "still": ("still face", "calm face"),
    "smile": ("bright smile", "warm smile"),
}
VOICE_WORDINGS: Mapping[str, tuple[str, str]] = {
    "fast": ("fast tone", "loud tone"),
    "shaky": ("shaky tone", "thin tone"),
    "flat": ("flat tone", "dull tone"),
    "rising": ("rising tone", "sharp tone"),
}


def group_of(label: str, groups: Mapping[str, tuple[str, ...]]) -> str:
    """Return the name of the group that contains the label.

    >>> group_of("angry", FACE_GROUPS), group_of("angry", VOICE_GROUPS)
    ('lowered', 'fast')
    """
    (name,) = (name for name, members in groups.items() if label in members)
    return name


def cue_to_label() -> dict[str, str]:
    """Map every existing pair "face group+voice group" to its emotion.

    >>> cue_to_label()["lowered+fast"]
    'angry'
    """
    return {f"{group_of(label, FACE_GROUPS)}+{group_of(label, VOICE_GROUPS)}": label for label in LABELS}


def unimodal_ceiling(groups: Mapping[str, tuple[str, ...]]) -> float:
    """Return the best unweighted average recall (0..1) of a model that sees only these groups.

    Such a model answers with the same distribution over labels for all emotions of a group, so their recalls sum to
    at most one. The ceiling is therefore the number of groups divided by the number of labels.

    >>> round(unimodal_ceiling(FACE_GROUPS), 3)
    0.571
    """
    return len(groups) / sum(len(members) for members in groups.values())


def trace(thought: str, label: str) -> str:
    """Return the tagged answer that is the training target of a supervised clip.

    >>> trace("lowered brows and fast tone", "angry")
    '<think>lowered brows and fast tone</think><answer>angry</answer>'
    """
    return f"<think>{thought}</think><answer>{label}</answer>"
