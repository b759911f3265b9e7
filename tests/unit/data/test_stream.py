"""The same batches however samples are read: workers, reading ahead, ranks, caches, resumes and damaged files."""

import random
import threading
from dataclasses import replace
from functools import partial

import pytest
from words import Monitor, decisions, on_two_ranks, row, write

from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.exclusions import Exclusions
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.prepared import Fault, PreparedSet
from lightning_mmrl.data.sampler import DrawSampler, Share, SourceRows
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.stream import StreamedSets, StreamLoader
from lightning_mmrl.errors import DataError, DiskError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.data import DropoutSettings, ReadAheadSettings, SourceSettings, StageDataSettings
from lightning_mmrl.workers.pool import WorkerError

NUM, BAD = 20, {2, 3, 11}


@pytest.fixture
def manifest(root):
    """Twenty clips, three of them damaged, in two sources."""
    media = [["broken.mp4"] if number in BAD else [("one.mp4", "two.mp4")[number % 2]] for number in range(NUM)]
    rows = [row(f"s{number}", media[number], text=f"Which? {number}") for number in range(NUM)]
    write(root, *rows[:12])
    write(root, *rows[12:], name="more.jsonl")
    return root


def loader(
    root, pipeline, *, exclusions=None, ranks=ALONE, read_ahead=None, consumed=0, monitor=None, num_batches=12, **how
):
    """A loader in a process of its own."""
    sets = []
    for name in ("train.jsonl", "more.jsonl"):
        found = PreparedSet(
            read_manifest(root / name, root),
            media_root=root,
            pipeline=pipeline,
            template=PromptTemplate(),
            supervised=False,
            exclusions=exclusions,
        )
        sets.append((name, found))
    streamed = StreamedSets(sets, monitor or Monitor())
    sampler = DrawSampler(
        [SourceRows(num_samples=len(each), settings=SourceSettings(weight=len(each))) for _, each in sets],
        settings=StageDataSettings(batch_size=4, modality_dropout=DropoutSettings(blank=0.3)),
        num_batches=num_batches,
        seed=5,
        share=Share(rank=ranks.rank, world_size=ranks.world_size),
        rejected=streamed.reasons,
    )
    sampler.load_state_dict({"consumed": consumed, "configuration": sampler.state_dict()["configuration"]})
    return StreamLoader(
        streamed,
        sampler,
        partial(collate_prompts, pad_token_id=0),
        ranks=ranks,
        decoder=pipeline.decoder,
        settings=read_ahead or ReadAheadSettings(prefetch_samples=0),
        **how,
    )


def content(batches):
    """Ids and media of batches, sample by sample."""
    found = []
    for batch in batches:
        levels = batch.media.tensors["levels"].split(batch.media.counts["levels"])
        found += [(sample.id, level.tolist()) for sample, level in zip(batch.samples, levels, strict=True)]
    return found


@pytest.fixture
def expected(manifest, pipeline, tmp_path):
    found = content(loader(manifest, pipeline, exclusions=Exclusions(tmp_path / "first" / "exclusions.jsonl")))
    assert len(found) == 48
    assert {name for name, _ in found} == {f"s{number}" for number in range(NUM) if number not in BAD}
    return found


@pytest.mark.parametrize("prefetch", [1, 3, 8, 64])
def test_batches_do_not_depend_on_how_far_samples_are_read_ahead(manifest, pipeline, expected, prefetch, tmp_path):
    path = tmp_path / "run" / "exclusions.jsonl"
    how = ReadAheadSettings(prefetch_samples=prefetch)
    assert content(loader(manifest, pipeline, read_ahead=how, exclusions=Exclusions(path))) == expected
    assert decisions(path) == decisions(tmp_path / "first" / "exclusions.jsonl")
    assert decisions(path)[1] == {f"s{number}" for number in BAD}


@pytest.mark.parametrize("num_upcoming", [1, 3, 20])
@pytest.mark.parametrize("consumed", [0, 5])
def test_batches_do_not_depend_on_how_many_are_shown_beforehand(
    manifest, pipeline, expected, num_upcoming, consumed, tmp_path
):
    """The batches that follow are there at once, and fewer at the end."""
    path = tmp_path / ("first" if consumed else "run") / "exclusions.jsonl"
    batches = loader(manifest, pipeline, consumed=consumed, num_upcoming=num_upcoming, exclusions=Exclusions(path))
    shown, taken = [], []
    for batch in batches:
        taken += content([batch])
        shown.append(content(batches.upcoming))
    assert taken == expected[4 * consumed :]
    for number, following in enumerate(shown, consumed + 1):
        assert following == expected[4 * number : 4 * (number + num_upcoming)]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_workers_or_on_the_cache(
    manifest, pipeline, expected, workers, tmp_path
):
    cold = replace(pipeline, cache=MediaCache(tmp_path / "cold"), decoder=GuardedDecoder(workers=workers))
    for prefetch in (8, 0):  # the second time everything is in the cache
        how = ReadAheadSettings(decode_workers=workers, prefetch_samples=prefetch)
        assert content(loader(manifest, cold, read_ahead=how)) == expected


@pytest.mark.parametrize("prefetch", [0, 2, 64])
def test_two_ranks_take_the_same_batches_whichever_of_them_meets_a_damaged_clip(
    manifest, pipeline, expected, prefetch, tmp_path
):
    path = tmp_path / "run" / "exclusions.jsonl"

    def run(ranks):
        batches = loader(
            manifest,
            replace(pipeline, cache=MediaCache(tmp_path / f"cache{ranks.rank}")),
            exclusions=Exclusions(path, decides=ranks.rank == 0),
            ranks=ranks,
            read_ahead=ReadAheadSettings(prefetch_samples=prefetch),
        )
        return [content([batch]) for batch in batches]

    found = on_two_ranks(run)
    assert [each for pair in zip(*found, strict=True) for part in pair for each in part] == expected
    assert path.read_bytes() == (tmp_path / "first" / "exclusions.jsonl").read_bytes()


@pytest.mark.parametrize("prefetch", [0, 3, 64])
def test_ranks_get_about_equally_many_tokens_of_the_same_batches(manifest, pipeline, prefetch, tmp_path):
    """Questions of very different lengths: each batch is that of one process, and no rank waits long for another."""
    generator = random.Random(0)
    rows = [
        row(f"s{number}", [("one.mp4", "two.mp4")[number % 2]], text="so " * generator.choice([1, 20, 60, 100]))
        for number in range(NUM)
    ]
    write(manifest, *rows[:12])
    write(manifest, *rows[12:], name="more.jsonl")
    how = ReadAheadSettings(prefetch_samples=prefetch)
    whole = list(loader(manifest, pipeline, read_ahead=how))

    def run(ranks):
        own = replace(pipeline, cache=MediaCache(tmp_path / f"cache{ranks.rank}"))
        return list(loader(manifest, own, ranks=ranks, read_ahead=how))

    fullest, before, best = 0, 0, 0
    for batch, *parts in zip(whole, *on_two_ranks(run), strict=True):
        serials = [serial for part in parts for serial in part.serials]
        found = content(parts)
        assert [found[serials.index(serial)] for serial in sorted(serials)] == content([batch])
        assert tuple(sorted(serials)) == batch.serials
        assert all(part.serials == tuple(sorted(part.serials)) for part in parts)
        assert {len(part.samples) for part in parts} == {2}
        lengths = batch.prompt_mask.sum(-1)
        fullest += max(int(part.prompt_mask.sum()) for part in parts)
        before += max(int(lengths[:2].sum()), int(lengths[2:].sum()))
        pairs = [int(lengths[0] + other) for other in lengths[1:]]
        best += min(max(pair, int(lengths.sum()) - pair) for pair in pairs)
    assert before > 1.05 * best
    assert fullest <= 1.02 * best


@pytest.mark.parametrize("cut", range(1, 12, 2))
def test_a_resume_continues_after_the_consumed_batches_though_files_were_repaired(
    manifest, pipeline, expected, cut, tmp_path
):
    path = tmp_path / "run" / "exclusions.jsonl"
    first = iter(loader(manifest, pipeline, exclusions=Exclusions(path), read_ahead=ReadAheadSettings()))
    before = [next(first) for _ in range(cut)]
    first.close()
    _, left_out = decisions(path)
    if left_out == {f"s{number}" for number in BAD}:
        (manifest / "broken.mp4").write_bytes((manifest / "one.mp4").read_bytes())
    rest = loader(manifest, pipeline, exclusions=Exclusions(path), consumed=cut, read_ahead=ReadAheadSettings())
    assert content(before) + content(rest) == expected


def test_a_decision_is_saved_before_its_batch_is_used(manifest, pipeline, tmp_path):
    path = tmp_path / "run" / "exclusions.jsonl"
    seen = set()
    for batch in loader(manifest, pipeline, exclusions=Exclusions(path)):
        seen |= {sample.id for sample in batch.samples}
        assert seen == decisions(path)[0]


def test_a_sample_that_was_used_and_cannot_be_read_any_more_ends_the_run(manifest, pipeline, tmp_path):
    batches = iter(loader(manifest, pipeline, exclusions=Exclusions(tmp_path / "run" / "exclusions.jsonl")))
    for _ in range(8):  # a pass and a half
        next(batches)
    for name in ("one.mp4", "two.mp4"):
        (manifest / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"sample s\d+ was used before in this run and cannot be now: .*\.mp4"):
        list(batches)


def test_each_sample_that_is_left_out_is_said_once_with_its_number(manifest, pipeline, tmp_path):
    first, second = Monitor(), Monitor()
    path = tmp_path / "run" / "exclusions.jsonl"
    list(loader(manifest, pipeline, exclusions=Exclusions(path), monitor=first))
    told = [name for _, _, named in first.left_out for name, _ in named]
    assert sorted(told) == sorted(f"s{number}" for number in BAD)
    usable = {manifest: num for manifest, num, _ in first.left_out}
    assert usable == {"train.jsonl": 9}
    list(loader(manifest, pipeline, exclusions=Exclusions(path), monitor=second))
    assert sorted(name for _, _, named in second.left_out for name, _ in named) == sorted(told)


def test_ranks_ask_for_no_faults_once_every_sample_was_used(manifest, pipeline):
    """The lengths, by which several ranks deal each batch, they exchange nonetheless."""

    class Counted:
        rank, world_size, lockstep, asked = 0, 1, False, 0

        def any(self, flags):
            self.asked += 1
            return list(flags)

        def gather(self, item):
            return [item]

    ranks = Counted()
    loader_ = loader(manifest, pipeline, ranks=ranks, num_batches=40)
    list(loader_)
    first_passes = ranks.asked
    list(loader_)
    assert 0 < first_passes < 20
    assert ranks.asked == first_passes


def test_a_loader_that_is_left_early_ends_its_thread(manifest, pipeline):
    before = threading.active_count()
    batches = iter(loader(manifest, pipeline, read_ahead=ReadAheadSettings()))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_what_decoders_find_odd_reaches_the_monitor(manifest, pipeline, monkeypatch):
    monitor = Monitor()
    odd = partial(PreparedSet.read)
    monkeypatch.setattr(PreparedSet, "read", lambda self, *how: (odd(self, *how)[0], ["one.mp4: odd"]))
    list(loader(manifest, pipeline, monitor=monitor, num_batches=1))
    assert ("train.jsonl", ["one.mp4: odd"]) in monitor.warnings


def test_the_media_of_the_batches_differ_between_variants(expected):
    """Else the tests above could not tell one variant from another."""
    assert len({str(levels) for _, levels in expected}) == 2


def test_a_fault_of_a_used_sample_that_was_read_ahead_of_its_use_ends_the_run(
    manifest, pipeline, monkeypatch, tmp_path
):
    """The thread reads two passes ahead, so it meets a later occurrence before the first is used."""
    whole = PreparedSet.read

    def breaking(self, draws, decode):
        found, warnings = whole(self, draws, decode)
        for place, draw in enumerate(draws):
            if self.samples[draw.index].id == "s5" and draw.serial >= 24:
                found[place] = Fault(reason="gone")
        return found, warnings

    monkeypatch.setattr(PreparedSet, "read", breaking)
    path = tmp_path / "run" / "exclusions.jsonl"
    how = ReadAheadSettings(prefetch_samples=64)
    with pytest.raises(DataError, match="sample s5 was used before in this run and cannot be now: gone"):
        list(loader(manifest, pipeline, exclusions=Exclusions(path), read_ahead=how))
    assert "s5" in decisions(path)[0]
    assert "s5" not in decisions(path)[1]


@pytest.mark.parametrize("error", [WorkerError("a worker did not start"), DiskError("the disk is full", "free some")])
@pytest.mark.usefixtures("expected")
def test_a_fault_of_the_machine_is_none_of_a_sample(manifest, pipeline, monkeypatch, tmp_path, error):
    path = tmp_path / "run" / "exclusions.jsonl"

    def fail(*_):
        raise error

    monkeypatch.setattr(type(pipeline), "fetched", fail)
    with pytest.raises(type(error)):
        list(loader(manifest, pipeline, exclusions=Exclusions(path)))
    assert not path.exists() or not decisions(path)[1]
