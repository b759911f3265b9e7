"""Which rollout belongs to which prompts when a stage that samples ahead goes on, also on another number of ranks."""

from functools import partial

import pytest
import torch
import words

from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.sampler import DrawSampler, Share, SourceRows
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.stream import StreamedSets, StreamLoader
from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.algorithm import PhaseSettings
from lightning_mmrl.settings.data import ReadAheadSettings, SourceSettings, StageDataSettings
from lightning_mmrl.stages.ahead import RolloutsAhead
from lightning_mmrl.types.batches import Rollout, SamplingOrder, TimedRollout
from lightning_mmrl.types.records import Completion

LAG, DONE = 2, 1
LENGTHS = (90, 80, 10, 20, 5, 70, 60, 30, 95, 15, 40, 85)
"""Letters of the questions: contiguous shares of these are uneven."""


class Numbers:
    """A `QueuedEngine` whose completions are the serial of their prompt, so often that lengths differ."""

    def __init__(self):
        self.found, self.pushed, self.version = {}, [], None

    def load_weights(self, policy, version):
        self.pushed.append(version)
        self.version = version

    def submit(self, order):
        self.found[len(self.found) + 1] = TimedRollout(rollout=self.rollout(order), seconds=1.0)
        return len(self.found)

    def rollout(self, order):
        serials = [serial for serial in order.prompts.serials for _ in range(2)]
        lengths = torch.tensor([1 + serial % 4 for serial in serials])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.tensor(serials)[:, None] * mask
        return Rollout(
            completion_ids=ids,
            completion_mask=mask,
            sampler_logprobs=-ids.double(),
            completions=tuple(
                Completion(text=str(serial), num_tokens=int(length), truncated=False)
                for serial, length in zip(serials, lengths, strict=True)
            ),
            group_size=2,
            policy_version=torch.full((len(serials),), self.version),
            decoding={"passes": 10},
        )

    def wait(self, ticket, poll=lambda: None):
        return self.found[ticket]

    def release(self, ticket):
        pass


class Process:
    """One of the ranks of a stage: its batches, dealt by the loader that training has, and its rollouts."""

    def __init__(self, root, tmp_path, ranks, consumed=0, num_batches=8):
        pipeline = words.pipeline(tmp_path / f"cache{ranks.world_size}{ranks.rank}")
        found = PreparedSet(
            read_manifest(root / "train.jsonl", root),
            media_root=root,
            pipeline=pipeline,
            template=PromptTemplate(),
            supervised=False,
        )
        sets = StreamedSets([("train.jsonl", found)], words.Monitor())
        sampler = DrawSampler(
            [SourceRows(num_samples=len(LENGTHS), settings=SourceSettings())],
            settings=StageDataSettings(batch_size=4),
            num_batches=num_batches,
            seed=5,
            share=Share(rank=ranks.rank, world_size=ranks.world_size),
            rejected=sets.reasons,
        )
        sampler.load_state_dict({"consumed": consumed, "configuration": sampler.state_dict()["configuration"]})
        self.loader = StreamLoader(
            sets,
            sampler,
            partial(collate_prompts, pad_token_id=0),
            ranks=ranks,
            decoder=pipeline.decoder,
            settings=ReadAheadSettings(prefetch_samples=0),
            num_upcoming=LAG,
        )
        self.ranks, self.engine = ranks, Numbers()
        self.ahead = RolloutsAhead(self.engine, LAG, lambda: self.loader.upcoming)
        self.finished = consumed

    def run(self, states=None, until=None):
        """Trains to an iteration; returns the batches with their rollouts, and the state after the last."""
        if states is not None:
            self.ahead.load_state_dict(states, self.ranks)
        self.ahead.start(self.finished)
        self.ahead.load_weights(torch.nn.Linear(1, 1), self.finished)
        pairs = []
        for iteration, batch in enumerate(self.loader, self.finished + 1):
            self.ahead.submit(iteration, batch, order)
            pairs.append((batch, self.ahead.take(iteration, torch.device("cpu"))))
            self.ahead.load_weights(torch.nn.Linear(1, 1), iteration)
            if iteration == until:
                break
        return pairs, self.ahead.state_dict()


def order(batch, iteration):
    limits = PhaseSettings(after=0, group_size=2, temperature=1.0)
    return SamplingOrder(prompts=batch, seeds=[[0, 0]] * len(batch.samples), limits=limits)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    words.write(folder, *(words.row(f"s{number}", [], text="a" * size) for number, size in enumerate(LENGTHS)))
    return folder


@pytest.fixture
def after(root, tmp_path):
    """By the number of ranks, their states and their batches after one iteration."""

    def run(world_size, **how):
        def rank(ranks):
            return Process(root, tmp_path, ranks, **how).run(until=DONE)

        found = [rank(ALONE)] if world_size == 1 else words.on_two_ranks(rank)
        return [state for _, state in found], [pairs for pairs, _ in found]

    return run


def go_on(root, tmp_path, world_size, states):
    def rank(ranks):
        return Process(root, tmp_path, ranks, consumed=DONE).run(states)

    return [rank(ALONE)] if world_size == 1 else words.on_two_ranks(rank)


@pytest.mark.parametrize("later", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_prompt_has_its_own_answer_on_any_number_of_ranks(after, root, tmp_path, world_size, later):
    states, _ = after(world_size)
    assert [sorted(state) for state in states] == [["1", "2", "3"]] * world_size
    found = go_on(root, tmp_path, later, states)
    decoding = [pairs[0][1].decoding.get("passes", 0) for pairs, _ in found]
    assert sum(decoding) == 10 * world_size
    for pairs, _ in found:
        assert len(pairs) == 7
        for batch, rollout in pairs:
            expected = [str(serial) for serial in batch.serials for _ in range(2)]
            assert [each.text for each in rollout.completions] == expected
            assert rollout.completion_ids[:, 0].tolist() == [int(each) for each in expected]
            assert rollout.completion_mask.sum(-1).tolist() == [1 + int(each) % 4 for each in expected]
            assert rollout.completion_mask.any(0).all()


def test_contiguous_shares_would_be_answers_to_other_prompts(after):
    """The negative control: ranks get prompts that are not next to each other."""
    [first, second], _ = after(2)
    for number in ("2", "3"):
        joined = first[number]["serials"] + second[number]["serials"]
        assert joined != sorted(joined)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rollout_of_other_prompts_ends_the_stage(after, root, tmp_path, world_size):
    states, _ = after(1)
    states[0]["3"]["ids"][1] = "another"
    if world_size == 1:
        states[0]["3"]["serials"][0] += 1
    with pytest.raises(StageError, match=r"has a rollout of iteration 3 for other prompts than the data give now; put"):
        go_on(root, tmp_path, world_size, states)


def test_weights_are_sent_only_if_something_is_sampled_with_them(root, tmp_path):
    whole = Process(root, tmp_path, ALONE)
    whole.run()
    assert whole.engine.pushed == [0, *range(1, 8 - LAG)]
    over = Process(root, tmp_path, ALONE, consumed=8)
    assert over.run() == ([], {})
    assert over.engine.pushed == []


def test_all_ranks_learn_that_the_engine_of_one_is_gone(root, tmp_path):
    """Each of them leaves the exchange, so no rank waits for another, and each raises the same error."""

    def run(ranks):
        process = Process(root, tmp_path, ranks)
        process.run(until=1)

        def lost(ticket, poll=None):
            raise RolloutError("the engine is gone")

        if ranks.rank == 1:
            process.engine.wait = lost
        with pytest.raises(RolloutError, match="the engine is gone"):
            process.ahead.gathered_states(ranks)
        return ranks.gather("both are here")

    assert words.on_two_ranks(run) == [["both are here"] * 2] * 2
