"""The tables that RL writes keep everything that rewards need."""

import torch

from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.types.batches import Rollout, Scores
from lightning_mmrl.types.records import Completion, MediaRef, Message, Sample, Score

SAMPLE = Sample(
    id="clip-1",
    messages=(Message(role="user", content="<video>Which emotion?"),),
    media=(MediaRef(kind="video", path="clips/1.mp4", start_s=0.5, end_s=2.0),),
    solution="angry",
    speaker="s01",
    split="train",
    extras={"difficulty": 3, "tags": ["loud"]},
)


def test_the_writer_of_a_stage_keeps_all_that_rewards_need(tmp_path):
    completions = tuple(Completion(text=text, num_tokens=1, truncated=False) for text in "abcd")
    rollout = Rollout(
        completion_ids=torch.zeros(4, 1, dtype=torch.long),
        completion_mask=torch.ones(4, 1, dtype=torch.bool),
        sampler_logprobs=torch.zeros(4, 1),
        completions=completions,
        group_size=2,
        policy_version=torch.tensor([9, 9, 10, 10]),
    )
    scores = Scores(
        rewards=torch.tensor([[1.0, 2.0], [0.0, 0.5]]),
        valid=torch.tensor([[True, True], [False, True]]),
        components={"label": torch.tensor([[0.0, 1.0], [0.0, 0.5]])},
        details=(
            (Score(total=1.0, components={"label": 0.0}), Score(total=2.0, components={"label": 1.0})),
            (
                Score(total=0.0, components={}, valid=False, reason="label: timed out"),
                Score(total=0.5, components={"label": 0.5}),
            ),
        ),
    )
    other = Sample(id="clip-2", messages=())
    table = RolloutTable(tmp_path / "rollouts", StageSettings(rollout_table_every=10))
    assert table.write(9, [SAMPLE, other], rollout, scores) is None
    path = table.write(10, [SAMPLE, other], rollout, scores)
    assert path.name == "iteration_000010.jsonl"
    first, second = read_table(path)
    assert first.advantages is None
    advantages = torch.tensor([[-0.5, 0.5], [torch.nan, 0.0]])
    known = read_table(table.write(20, [SAMPLE, other], rollout, scores, advantages=advantages))
    assert [row.advantages for row in known] == [(-0.5, 0.5), (None, 0.0)]
    assert (first.sample, second.sample) == (SAMPLE, other)
    assert first.completions + second.completions == completions
    assert [score.total for score in first.scores + second.scores] == [1.0, 2.0, 0.0, 0.5]
    assert [score.valid for score in second.scores] == [False, True]
    assert second.scores[0].reason == "label: timed out"
    assert (first.pass_rate, second.pass_rate) == (0.5, 0.0)
    assert (first.policy_version, second.policy_version) == (9, 10)
