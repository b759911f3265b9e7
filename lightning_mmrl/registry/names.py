"""Everything that a configuration may name in `_target_`: exact names by kind, and the places where each kind belongs.

A prefix would allow too much: a module also holds what it imports, such as `os`, and functions that were never meant
for a configuration. Nothing that is named here is imported here; families, rewards, advantages, losses and trackers are
found by reading their files.
"""

from collections.abc import Mapping, Sequence

from lightning_mmrl.registry.found import find_builders, find_called, find_families, find_trackers

ALGORITHMS = "lightning_mmrl.algorithms"
SYNTHETIC = "lightning_mmrl.data.synthetic"
VLLM = "lightning_mmrl.rollout.vllm"


def _of(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


FAMILIES = find_families()
"""Maps each model family to the targets of its backbone and its encoder, which are in one file of models/families."""

REGISTRY: Mapping[str, Sequence[str]] = {
    "backbone": tuple(backbone for backbone, _ in FAMILIES.values()),
    "encoder": tuple(encoder for _, encoder in FAMILIES.values()),
    "model builder": (
        "lightning_mmrl.models.smollm2.build_smollm2_135m",
        "lightning_mmrl.models.tiny.build_tiny_omni",
        *_of(
            "lightning_mmrl.models.tiny_qwen",
            "build_tiny_qwen2",
            "build_tiny_qwen2_vl",
            "build_tiny_qwen2_5_vl",
            "build_tiny_qwen3",
            "build_tiny_qwen3_vl",
        ),
        *find_builders(),
    ),
    "data module": _of(
        "lightning_mmrl.data.datamodules",
        "OmniDataModule",
        "ImageDataModule",
        "VideoDataModule",
        "AudioDataModule",
        "TextDataModule",
    ),
    "generator": (
        f"{SYNTHETIC}.emotions.synthesize_emotions",
        f"{SYNTHETIC}.emotion_trees.synthesize_emotion_trees",
        "lightning_mmrl.data.prepare.build.prepare_originals",
        f"{SYNTHETIC}.arithmetic.ARITHMETIC",
        *_of(f"{SYNTHETIC}.bars", "BARS", "BARS_TEXT"),
        f"{SYNTHETIC}.counting.COUNTING",
        f"{SYNTHETIC}.described.DESCRIBED",
        f"{SYNTHETIC}.geometry.GEOMETRY",
        f"{SYNTHETIC}.motion.MOTION",
        f"{SYNTHETIC}.numbers.NUMBERS",
        *_of(f"{SYNTHETIC}.relations", "RELATIONS", "RELATIONS_TEXT"),
        *_of(f"{SYNTHETIC}.sokoban", "SOKOBAN", "SOKOBAN_LARGE"),
        f"{SYNTHETIC}.extremes.synthesize_extremes",
        f"{SYNTHETIC}.tones.TONES",
    ),
    "generator setting": (
        *_of(f"{SYNTHETIC}.settings", "EmotionSetSettings", "SplitSizes", "BaseTaskWeights", "Style"),
        f"{SYNTHETIC}.faces.FaceStyle",
        f"{SYNTHETIC}.voices.VoiceStyle",
        "lightning_mmrl.data.prepare.writer.PrepareSettings",
    ),
    "stage module": (
        "lightning_mmrl.stages.sft.SFTModule",
        "lightning_mmrl.stages.dpo.DPOModule",
        "lightning_mmrl.stages.grpo.GRPOModule",
        "lightning_mmrl.stages.rloo.RLOOModule",
        "lightning_mmrl.stages.ppo.PPOModule",
    ),
    # Optimizers that train dense tensors of any shape and need no closure.
    "optimizer": _of(
        "torch.optim",
        "Adafactor",
        "Adadelta",
        "Adagrad",
        "Adam",
        "Adamax",
        "AdamW",
        "ASGD",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    ),
    "schedule": _of(f"{ALGORITHMS}.schedules", "WarmupConstant", "WarmupCosine", "DelayedDecay"),
    "advantage": find_called("advantage"),
    "loss": find_called("loss"),
    "target loss": find_called("target loss"),
    "ratio": _of(f"{ALGORITHMS}.losses.ratios", "TokenRatio", "SequenceRatio", "CompletionRatio"),
    "aggregation": _of(f"{ALGORITHMS}.losses.aggregation", "TokenMean", "SequenceMean", "ConstantLength"),
    "correction": (f"{ALGORITHMS}.corrections.importance.ImportanceCorrection",),
    "selection": (f"{ALGORITHMS}.selection.accuracy_band.AccuracyBand", f"{ALGORITHMS}.selection.has_signal.HasSignal"),
    "resampling": _of(f"{ALGORITHMS}.selection.pad", "PaperPAD", "ReleasedPAD"),
    "reward": find_called("reward"),
    "task": (
        "lightning_mmrl.evaluation.tasks.closed_labels.ClosedLabels",
        "lightning_mmrl.evaluation.tasks.conflicts.Conflicts",
        "lightning_mmrl.evaluation.tasks.cv_bench.CVBench",
        "lightning_mmrl.evaluation.tasks.math_vision.MathVision",
        "lightning_mmrl.evaluation.tasks.mathematics.Mathematics",
        "lightning_mmrl.evaluation.tasks.mathvista.MathVista",
        "lightning_mmrl.evaluation.tasks.mme_emotion.MMEEmotion",
        "lightning_mmrl.evaluation.tasks.mmmu.MMMU",
        "lightning_mmrl.evaluation.tasks.multiple_choice.MultipleChoice",
        "lightning_mmrl.evaluation.tasks.open_vocabulary.OpenVocabulary",
        "lightning_mmrl.evaluation.tasks.sat.SAT",
        "lightning_mmrl.evaluation.tasks.sokoban.Sokoban",
        "lightning_mmrl.evaluation.tasks.we_math.WeMath",
    ),
    "engine": ("lightning_mmrl.rollout.hf.HFEngine.of", f"{VLLM}.engine.VLLMEngine"),
    "engine setting": (f"{VLLM}.settings.VLLMSettings",),
    "drafts": ("lightning_mmrl.settings.speculation.SpeculationSettings",),
    "server": (f"{VLLM}.settings.VLLMServer",),
    "canary": ("lightning_mmrl.rollout.canary.Canary",),
    "tracker": find_trackers(),
}
"""Maps each kind to its targets."""

PLACES: Mapping[str, str] = {
    "model.family.backbone": "backbone",
    "model.family.encoder": "encoder",
    "model.build": "model builder",
    "data.module": "data module",
    "data.build": "generator",
    "data.task": "task",
    "datasets.*.module": "data module",
    "datasets.*.build": "generator",
    "datasets.*.task": "task",
    "evaluation.sets.*.task": "task",
    "rollout": "engine",
    "stages.*.rollout": "engine",
    "tracking.tracker": "tracker",
    "stages.*.module": "stage module",
    "stages.*.data.module": "data module",
    "stages.*.loss": "target loss",
    "stages.*.optimizer": "optimizer",
    "stages.*.schedule": "schedule",
    "stages.*.rewards.components.*": "reward",
    "stages.*.algorithm.advantage": "advantage",
    "stages.*.algorithm.loss": "loss",
    "stages.*.algorithm.aggregation": "aggregation",
    "stages.*.algorithm.correction": "correction",
    "stages.*.algorithm.select": "selection",
    "stages.*.algorithm.resample": "resampling",
    "stages.*.algorithm.kl.schedule": "schedule",
    "stages.*.algorithm.entropy.schedule": "schedule",
}
"""Maps a key to the kind that belongs there; a star is one name that the user chooses."""

NESTED: Mapping[str, str] = {
    "loss.ratio": "ratio",
    "reward.*": "reward",
    "task.*": "reward",
    "generator.settings": "generator setting",
    "generator setting.*": "generator setting",
    "engine.settings": "engine setting",
    "engine.canary": "canary",
    "engine.speculation": "drafts",
    "engine setting.server": "server",
}
"""Maps a kind and one of its parameters to the kind that belongs there; a star is any parameter."""
