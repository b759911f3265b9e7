"""Each usable sample once, in order: the same batches and the same decisions for any ranks, workers and caches."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from words import Monitor, decisions, in_order, on_two_ranks, row, write

from lightning_mmrl.data.exclusions import Exclusions
from lightning_mmrl.data.in_order import InOrder
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.sampler import Share
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.stream import StreamedSets
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate

NUM, BAD = 17, (2, 3, 9, 16)
EXPECTED = [["s0", "s1", "s4", "s5"], ["s6", "s7", "s8", "s10"], ["s11", "s12", "s13", "s14"], ["s15"]]
"""By hand: batches of four without the damaged ones, which is what a set without these lines gives."""


@pytest.fixture
def manifest(root):
    """Clips in two sources, four of them damaged, the last one too."""
    media = [["broken.mp4"] if number in BAD else [("one.mp4", "two.mp4")[number % 2]] for number in range(NUM)]
    rows = [row(f"s{number}", media[number], text=f"Which? {number}") for number in range(NUM)]
    write(root, *rows[:11])
    write(root, *rows[11:], name="more.jsonl")
    return root


def opened(root, pipeline, exclusions=None, names=("train.jsonl", "more.jsonl"), monitor=None):
    """The sets of a process of its own."""

    def one(name):
        return PreparedSet(
            read_manifest(root / name, root),
            media_root=root,
            pipeline=pipeline,
            template=PromptTemplate(),
            supervised=False,
            exclusions=exclusions,
        )

    return StreamedSets([(name, one(name)) for name in names], monitor or Monitor())


def ids(batches):
    return [[sample.id for sample in batch.samples] for batch in batches]


def levels(batches):
    return [batch.media.tensors["levels"].tolist() for batch in batches]


@pytest.mark.parametrize("prefetch", [0, 1, 5, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_as_if_the_damaged_lines_were_not_there(manifest, pipeline, tmp_path, prefetch, workers):
    path = tmp_path / "run" / "exclusions.jsonl"
    cold = replace(pipeline, cache=MediaCache(tmp_path / "cold"), decoder=GuardedDecoder(workers=workers))
    found = list(in_order(opened(manifest, cold, Exclusions(path)), prefetch=prefetch))
    assert ids(found) == EXPECTED
    assert decisions(path) == (
        {name for batch in EXPECTED for name in batch},
        {f"s{number}" for number in BAD},
    )
    whole = [row(f"s{number}", [("one.mp4", "two.mp4")[number % 2]]) for number in range(NUM) if number not in BAD]
    write(manifest, *whole, name="whole.jsonl")
    without = list(in_order(opened(manifest, pipeline, names=["whole.jsonl"]), prefetch=0))
    assert ids(without) == EXPECTED
    assert levels(found) == levels(without)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("prefetch", [0, 64])
def test_two_ranks_read_each_its_share_and_write_the_same_decisions(manifest, pipeline, tmp_path, batch_size, prefetch):
    first, path = tmp_path / "first" / "exclusions.jsonl", tmp_path / "run" / "exclusions.jsonl"
    alone = ids(in_order(opened(manifest, pipeline, Exclusions(first)), batch_size=batch_size))

    def run(ranks):
        own = replace(pipeline, cache=MediaCache(tmp_path / f"cache{ranks.rank}"))
        sets = opened(manifest, own, Exclusions(path, decides=ranks.rank == 0))
        batches = in_order(sets, batch_size=batch_size, ranks=ranks, prefetch=prefetch)
        found = [ids(batches) for _ in range(2)]
        return found, [(sample.id, reason) for sample, reason in sets.left_out()]

    (one, told), (two, also_told) = on_two_ranks(run)
    for passed in range(2):
        pairs = list(zip(one[passed], two[passed], strict=True))
        assert [list(dict.fromkeys([*left, *right])) for left, right in pairs] == alone
    assert told == also_told
    assert [name for name, _ in told] == [f"s{number}" for number in BAD]
    assert path.read_bytes() == first.read_bytes()


@pytest.fixture
def spans(root):
    """Sixteen clips of one file that differ in their span."""
    clips = [{"path": "one.mp4", "start": 0.01 * number} for number in range(16)]
    write(root, *[row(f"s{number}", [clip]) for number, clip in enumerate(clips)])
    return root


@pytest.mark.parametrize(("prefetch", "most"), [(0, 4), (4, 8)])
def test_a_batch_waits_for_its_own_samples_alone(spans, pipeline, prefetch, most):
    batches = iter(in_order(opened(spans, pipeline, names=["train.jsonl"]), prefetch=prefetch))
    next(batches)
    assert 4 <= len(pipeline.decoder.decoded) <= most
    assert len(list(batches)) == 3
    assert len(pipeline.decoder.decoded) == 16


def test_ranks_share_the_decoding(spans, pipeline, tmp_path):
    """With half a batch each, no rank decodes more than its half."""

    def run(ranks):
        decoder = type(pipeline.decoder)()
        own = replace(pipeline, decoder=decoder, cache=MediaCache(tmp_path / "shared"))
        list(in_order(opened(spans, own, names=["train.jsonl"]), ranks=ranks))
        return len(decoder.decoded)

    assert on_two_ranks(run) == [8, 8]


@pytest.mark.parametrize("first", range(5))
def test_a_later_start_gives_the_rest_of_the_batches(manifest, pipeline, tmp_path, first):
    """As when a stage that samples goes on: everything up to there is decided, and nothing of it is read again."""
    path = tmp_path / "run" / "exclusions.jsonl"
    begun = iter(in_order(opened(manifest, pipeline, Exclusions(path))))
    before = [next(begun) for _ in range(first)]
    begun.close()
    pipeline.decoder.decoded.clear()
    rest = in_order(opened(manifest, pipeline, Exclusions(path)), first=first)
    assert ids(before) == EXPECTED[:first]
    assert ids(rest) == EXPECTED[first:]
    if first > 3:
        assert pipeline.decoder.decoded in ([], [("broken.mp4", "video")])


def test_of_two_readers_of_the_same_samples_the_second_follows_the_first(manifest, pipeline, tmp_path):
    """Both begin when nothing is decided, as two evaluation sets of one manifest do."""
    path, monitor = tmp_path / "run" / "exclusions.jsonl", Monitor()
    exclusions = Exclusions(path)
    one, two = (opened(manifest, pipeline, exclusions, monitor=monitor) for _ in range(2))
    assert ids(in_order(one)) == EXPECTED
    before = path.read_bytes()
    (manifest / "broken.mp4").write_bytes((manifest / "one.mp4").read_bytes())
    assert ids(in_order(two)) == EXPECTED
    assert two.reasons == one.reasons
    assert path.read_bytes() == before
    alone = opened(manifest, pipeline)  # without the first one's decisions
    assert [len(batch) for batch in ids(in_order(alone))] == [4, 4, 4, 4, 1]


def test_a_reader_follows_the_other_one_in_what_was_used_as_well(manifest, pipeline, tmp_path):
    exclusions = Exclusions(tmp_path / "run" / "exclusions.jsonl")
    one, two = (opened(manifest, pipeline, exclusions) for _ in range(2))
    list(in_order(one))
    for path in (manifest / "one.mp4", manifest / "two.mp4"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="sample s0 was used before in this run and cannot be now"):
        list(in_order(two))


@pytest.mark.parametrize("num", [1, 9])
def test_nothing_is_decided_about_a_set_of_which_nothing_can_be_used(root, pipeline, tmp_path, num):
    """As when its disk fails: once the files are readable the same run goes on."""
    path = tmp_path / "run" / "exclusions.jsonl"
    content = (root / "one.mp4").read_bytes()
    (root / "one.mp4").write_bytes(b"nothing")
    write(root, *[row(f"s{number}", ["one.mp4"]) for number in range(num)])
    with pytest.raises(DataError, match=rf"^train\.jsonl: all {num} samples cannot be used; the first: .*one\.mp4"):
        list(in_order(opened(root, pipeline, Exclusions(path), names=["train.jsonl"])))
    assert not path.exists()
    (root / "one.mp4").write_bytes(content)
    found = in_order(opened(root, pipeline, Exclusions(path), names=["train.jsonl"]))
    assert sum(map(len, ids(found))) == num


def test_a_set_of_which_everything_was_left_out_before_is_refused_and_not_passed_over(manifest, pipeline, tmp_path):
    """As the first samples of a manifest, of which another reader has used the rest."""
    exclusions = Exclusions(tmp_path / "run" / "exclusions.jsonl")
    list(in_order(opened(manifest, pipeline, exclusions)))
    limited = PreparedSet(
        [sample for sample in read_manifest(manifest / "train.jsonl", manifest) if sample.id in ("s2", "s3")],
        media_root=manifest,
        pipeline=pipeline,
        template=PromptTemplate(),
        supervised=False,
        exclusions=exclusions,
    )
    with pytest.raises(DataError, match=r"^train\.jsonl: all 2 samples cannot be used; the first: .*broken\.mp4"):
        StreamedSets([("train.jsonl", limited)], Monitor())


@pytest.mark.parametrize("prefetch", [0, 5])
def test_nothing_reads_ahead_while_the_last_batch_is_used(manifest, pipeline, monkeypatch, prefetch):
    """Lightning takes as many batches as there are and never asks for the end."""
    kind = type(pipeline.decoder)
    ended, session = [], kind.session

    @contextmanager
    def watched(self):
        with session(self) as found:
            yield found
        ended.append(True)

    monkeypatch.setattr(kind, "session", watched)
    batches = iter(in_order(opened(manifest, pipeline, names=["train.jsonl"]), prefetch=prefetch))
    next(batches)
    assert not ended
    assert [sample.id for sample in next(batches).samples] == ["s6", "s7", "s8", "s10"]
    assert ended


def test_ranks_that_know_different_decisions_say_so_before_they_read(manifest, pipeline, tmp_path):
    """As with a run folder that each rank has for itself."""
    paths = [tmp_path / str(rank) / "exclusions.jsonl" for rank in range(2)]
    list(in_order(opened(manifest, pipeline, Exclusions(paths[0]))))

    def run(ranks):
        return ids(in_order(opened(manifest, pipeline, Exclusions(paths[ranks.rank])), ranks=ranks))

    with pytest.raises(DataError, match=r"the ranks know different decisions .*; put the run folder on a file system"):
        on_two_ranks(run)
    paths[1].parent.mkdir()
    paths[1].write_bytes(paths[0].read_bytes())
    assert len(on_two_ranks(run)[0]) == len(EXPECTED)


def test_workers_start_once_for_all_clips_of_a_pass_though_nothing_stays_in_the_cache(manifest, pipeline, monkeypatch):
    started = []

    class Counted(GuardedDecoder):
        def run(self, *_):
            raise AssertionError("a pool for one call")

        def session(self):
            session = super().session()
            start = session._start
            monkeypatch.setattr(session, "_start", lambda: started.append(1) or start())
            return session

    small = replace(pipeline, cache=MediaCache(pipeline.cache.directory, limit_gb=1e-9), decoder=Counted(workers=1))
    sets = opened(manifest, small)
    for passed in range(1, 3):
        assert ids(in_order(sets, prefetch=4)) == EXPECTED
        assert len(started) == passed


def test_the_number_of_batches_is_that_of_the_samples_not_known_to_be_unusable():
    order = InOrder((3, 4), batch_size=2, share=Share())
    assert len(order) == 4
    order.reject([0])
    assert len(order) == 3
    assert [[draw.index for draw in batch] for batch in order.upcoming(9)] == [[1, 2], [3, 4], [5, 6]]
    order.mark_read()
    order.reject([1, 4])  # one of them was read
    assert [[draw.index for draw in batch] for batch in order.upcoming(9)] == [[3, 5], [6]]
    assert len(InOrder((3, 4), batch_size=2, share=Share(), first=9)) == 0
