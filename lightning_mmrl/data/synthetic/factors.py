"""The factors of the generated emotion set: seven emotions, what a face and a voice show of each, and the words for it.

A clip's face is drawn from the label's face group alone and its voice from the label's voice group alone. Emotions of
one group are therefore identical to that modality, while the pair (face group, voice group) names exactly one
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
    """Return the name of the one group that holds the label.

    >>> group_of("angry", FACE_GROUPS), group_of("angry", VOICE_GROUPS)
    ('lowered', 'fast')
    """
    (name,) = (name for name, members in groups.items() if label in members)
    return name


def cue_to_label() -> dict[str, str]:
    """Map every "face group+voice group" pair that occurs to its emotion.

    >>> cue_to_label()["lowered+fast"]
    'angry'
    """
    return {f"{group_of(label, FACE_GROUPS)}+{group_of(label, VOICE_GROUPS)}": label for label in LABELS}


def unimodal_ceiling(groups: Mapping[str, tuple[str, ...]]) -> float:
    """Return the best unweighted average recall (0..1) of anything that sees only these groups.

    Answers within a group share one distribution over labels, so the recalls of its members sum to at most one: the
    ceiling is the number of groups over the number of labels.

    >>> round(unimodal_ceiling(FACE_GROUPS), 3)
    0.571
    """
    return len(groups) / sum(len(members) for members in groups.values())


def trace(thought: str, label: str) -> str:
    """Return the tagged answer that a supervised clip teaches.

    >>> trace("lowered brows and fast tone", "angry")
    '<think>lowered brows and fast tone</think><answer>angry</answer>'
    """
    return f"<think>{thought}</think><answer>{label}</answer>"
