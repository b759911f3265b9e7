"""The benchmarks' own machinery: statistics, resuming, gates that refuse, counters, and equal prompts and models."""

import importlib
import json
import math
import random
from dataclasses import replace

import bench_counters
import bench_flops
import bench_generate
import bench_models
import bench_ours
import bench_overhead
import bench_parity
import bench_report
import bench_step
import bench_trained
import benching
import numpy as np
import pytest
import torch

# A worker without torch: it notes its name in a shared file for every step, and ends with an error when told to.
FAKE_WORKER = """
import json, sys
spec = json.loads(sys.argv[2])
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    if spec["name"] == "broken":
        sys.exit("out of paper")
    open(spec["work"] + "/steps", "a").write(spec["name"] + " ")
    answer = {"seconds": spec["seconds"], "cpu_seconds": 1.0, "peak_bytes": spec["bytes"], "phases": {}}
    steps = open(spec["work"] + "/steps").read().count(spec["name"])
    answer["notes"] = {"steps": steps} if steps > 1 else {"first": 1}
    print(json.dumps(answer | {"counters": {"seen": int(command.get("count", 0))}, "baseline_bytes": 7}), flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return bench_models.World(bench_models.model_folder(tmp_path_factory.mktemp("bench")))


@pytest.fixture
def plan(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(FAKE_WORKER)
    return benching.Plan(
        script=script, work=tmp_path, out=tmp_path / "out.json", warmups=1, repeats=3, threads=1, again=False
    )


@pytest.fixture
def case():
    def make(*names, gate=None):
        seconds = {"slow": 3.0, "fast": 1.5, "broken": 1.0}
        variants = tuple(
            benching.Variant(name=name, spec={"name": name, "seconds": seconds[name], "bytes": 100 * len(name)})
            for name in names
        )
        ratios = (("slow", "fast"),) if "slow" in names else ()
        return benching.Case(key="a case", variants=variants, ratios=ratios, gate=gate)

    return make


def test_quartiles_are_those_of_the_values():
    found = bench_report.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found["q1"], found["median"], found["q3"]) == (2.0, 3.0, 4.0)
    assert bench_report.spread([2.5])["q3"] == 2.5


def test_ratios_are_taken_within_a_round():
    # The machine was twice as slow in the second round: no ratio of a round knows.
    slow, fast = ([{"seconds": value} for value in values] for values in ([4.0, 8.0], [2.0, 4.0]))
    assert bench_report.ratio(slow, fast)["all"] == [2.0, 2.0]


def test_variants_take_turns_and_are_summarised(plan, case, monkeypatch):
    monkeypatch.setattr(benching, "busy_cores", lambda: 0.0)
    record = benching.run_case(case("slow", "fast"), plan)
    # A warm-up each, then rounds that start with another one.
    assert (plan.work / "steps").read_text() == "slow fast " + "slow fast fast slow slow fast "
    assert record["variants"]["slow"]["seconds"]["all"] == [3.0, 3.0, 3.0]
    assert record["variants"]["slow"]["counters"] == {"seen": 1}
    assert record["ratios"]["slow / fast"]["median"] == 2.0
    assert record["memory"] == {"fast / slow": 1.0}


def test_a_variant_that_learns_has_steps_of_its_own_before_the_rounds(plan, case, monkeypatch):
    monkeypatch.setattr(benching, "busy_cores", lambda: 0.0)
    pair = case("slow", "fast")
    record = benching.run_case(replace(pair, variants=(pair.variants[0], replace(pair.variants[1], warmups=2))), plan)
    assert (plan.work / "steps").read_text() == "slow fast " + "fast fast " + "slow fast fast slow slow fast "
    # Notes are medians over the rounds, here of the numbers of steps; the first step alone had another.
    assert record["variants"]["slow"]["notes"] == {"first": 1, "steps": 3}
    assert record["variants"]["fast"]["notes"] == {"first": 1, "steps": 5}


def test_a_worker_that_ends_is_quoted_in_one_line(plan, case, monkeypatch):
    monkeypatch.setattr(benching, "busy_cores", lambda: 0.0)
    with pytest.raises(benching.BenchError, match=r"broken ended with exit code 1: out of paper \(all of it in"):
        benching.run_case(case("broken"), plan)


def test_nothing_is_timed_if_the_gate_refuses(plan, case, monkeypatch):
    monkeypatch.setattr(benching, "busy_cores", lambda: 0.0)

    def refuse(workers):
        raise benching.BenchError("they differ")

    with pytest.raises(benching.BenchError, match="they differ"):
        benching.run_cases([case("slow", gate=refuse)], plan)
    assert not (plan.work / "steps").exists()
    assert not plan.out.exists()


def test_a_finished_case_is_not_measured_again_unless_asked_or_with_another_variant(plan, case, monkeypatch):
    measured = []
    monkeypatch.setattr(
        benching,
        "run_case",
        lambda case, plan: measured.append(case) or {"variants": {variant.name: {} for variant in case.variants}},
    )
    for current, cases in ((plan, case("slow")), (plan, case("slow")), (replace(plan, again=True), case("slow"))):
        benching.run_cases([cases], current)
    assert len(measured) == 2
    benching.run_cases([case("slow", "fast")], plan)
    assert len(measured) == 3
    assert set(json.loads(plan.out.read_text())["cases"]["a case"]["variants"]) == {"slow", "fast"}


@pytest.mark.parametrize("text", ["no json", "[]", '{"cases": 3}'])
def test_a_file_that_is_no_report_is_refused_and_kept(plan, text):
    plan.out.write_text(text)
    with pytest.raises(benching.BenchError, match="name another file"):
        benching.run_cases([], plan)
    assert plan.out.read_text() == text


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("bench_step", ["--lengths", "3000"], "'3000' is not PROMPTxCOMPLETION"),
        ("bench_step", ["--variants", "theirs"], "'theirs' is none of trl, ours, plain, mask"),
        ("bench_generate", ["--repeats", "0"], "'0' is not a whole number from 1 on"),
        ("bench_overhead", ["--only", "ppo"], "invalid choice"),
    ],
)
def test_bad_options_are_named(capsys, tool, arguments, message):
    with pytest.raises(SystemExit):
        importlib.import_module(tool).parse(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_variants_that_options_rule_out_are_refused():
    step = bench_step
    for arguments in (["--iteration", "--variants", "mask"], ["--shape", "3b", "--variants", "trl-stored"]):
        with pytest.raises(benching.BenchError, match="is not there for these options"):
            step.variants_of(step.parse(arguments))


def test_the_large_shape_is_not_measured_without_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench_step.run(bench_step.parse(["--shape", "3b", "--work", str(tmp_path), "--out", str(tmp_path / "o")]))
    assert "not measured" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_gate_of_a_step_passes_equals_and_refuses_what_differs():
    parity = bench_parity
    right = {
        "prompt_ids": np.arange(3),
        "logprobs": np.array([-1.0, -2.0]),
        "loss": np.array(0.5),
        "gradient.a": np.array([1.0, -1.0]),
    }
    parity.check(parity.compare(right, right), parity.FLOAT32, "same")
    for wrong in (
        {"logprobs": right["logprobs"] + 2e-4},
        {"logprobs": np.array([-1.0, np.nan])},
        {"loss": np.array(-0.5)},
        {"gradient.a": -right["gradient.a"]},
        {"gradient.a": 0 * right["gradient.a"]},
    ):
        with pytest.raises(benching.BenchError, match="parity of other failed"):
            parity.check(parity.compare(right, right | wrong), parity.FLOAT32, "other")
    with pytest.raises(benching.BenchError, match="different prompts"):
        parity.compare(right, right | {"prompt_ids": np.arange(4)})
    with pytest.raises(benching.BenchError, match="different parameters"):
        parity.compare(right, right | {"gradient.b": np.ones(1)})


def test_the_gate_of_generation_names_the_first_token_that_differs():
    compare = bench_generate.compare_tokens
    with pytest.raises(benching.BenchError, match="prompt 1 differ at token 1"):
        compare([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    with pytest.raises(benching.BenchError, match=r"differ in length \(2 and 1\)"):
        compare([[1, 2]], [[1]])


def test_the_gate_of_overhead_wants_equal_weights_that_moved():
    compare = bench_overhead.compare_weights
    start, moved = {"a": np.zeros(2)}, {"a": np.full(2, 1e-6)}
    assert compare(start, moved, moved) == {"weight_difference": 0.0, "weight_moved": 1e-6}
    with pytest.raises(benching.BenchError, match="do not compute the same"):
        compare(start, moved, start)
    with pytest.raises(benching.BenchError, match="moved no weight"):
        compare(start, start, start)


@pytest.mark.parametrize("length", [126, 191, 400])
def test_prompts_have_the_length_that_is_asked_for(world, length):
    prompts = world.prompts(length)
    assert prompts.input_ids.shape == (1, length)
    assert prompts.prompt_mask.all()


def test_a_prompt_without_room_for_a_picture_is_refused(world):
    with pytest.raises(benching.BenchError, match="no room for a picture"):
        world.messages(60)


def test_completions_are_the_same_for_every_variant_and_ragged_when_asked(world):
    ids, mask = world.completions(8, 4)
    assert mask.all()
    assert torch.equal(ids, world.completions(8, 4)[0])
    _, ragged = world.completions(8, 4, ragged=True)
    lengths = ragged.sum(-1).tolist()
    assert lengths[0] == 8
    assert 4 <= min(lengths) < 8


def test_one_row_with_a_dense_mask_scores_as_the_policy_and_minds_positions(world):
    batch = world.scoring_batch(130, 5, 3, ragged=True)
    model, policy = world.model(), world.policy()
    with torch.no_grad():
        masked, own = bench_models.masked_logprobs(model, batch), policy(batch).logprobs
        flat = replace(batch.prompts, position_ids=torch.arange(130).expand(3, 1, -1))
        wrong = bench_models.masked_logprobs(model, replace(batch, prompts=flat))
    assert (masked - own).abs().max() < 1e-4
    assert (masked - wrong).abs().max() > 0.1


@pytest.mark.parametrize("variant", ["ours", "plain", "mask"])
def test_counters_count_the_work_of_each_layout(world, variant):
    prompt, tokens, size = 130, 5, 3
    spec = {"length": prompt, "tokens": tokens, "group_size": size, "freeze_tower": False}
    part = bench_ours.TrainingPart(world, {**spec, "variant": variant, "checkpointing": False})
    found = counted(part, prompt, size)
    copies = prompt + tokens
    shared = prompt + size * tokens
    own = {
        "ours": (shared, bench_flops.shared_pairs(prompt, tokens, size), part.num_patches),
        "plain": (size * copies, size * copies * (copies + 1) // 2, size * part.num_patches),
        "mask": (shared, shared**2, part.num_patches),
    }[variant]
    assert (found["lm_tokens"], found["attention_pairs"], found["tower_patches"]) == own
    assert found["head_rows"] == size * tokens
    assert "lm_tokens_again" not in found


def test_counters_tell_recomputation_from_the_work_itself(world):
    spec = {"length": 130, "tokens": 5, "group_size": 3, "freeze_tower": False, "variant": "ours"}
    part = bench_ours.TrainingPart(world, {**spec, "checkpointing": True})
    found = counted(part, 130, 3)
    assert found["lm_tokens"] == found["lm_tokens_again"] == 145


def counted(part, prompt, size):
    counters = bench_counters.counters_of(part.model, prompt_length=prompt, group_size=size)
    counters.start()
    part.evidence_of(ragged=False)
    return counters.stop()


def test_prefills_and_decode_steps_are_told_apart(world):
    policy = world.policy(banned=world.unending)
    engine = bench_ours.engine_of(world, policy, 4)
    counters = bench_counters.counters_of(policy.model, prompt_length=130, group_size=3)
    counters.start()
    engine.generate(world.prompts(130), group_size=3, seeds=[[1, 2, 3]])
    found = counters.stop()
    assert (found["prefills"], found["decode_steps"], found["tower_runs"]) == (1, 3, 1)


def test_trained_weights_have_the_sizes_of_random_ones_and_are_trained(world, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_trained, "NUM_STEPS", 8)
    monkeypatch.setattr(bench_trained, "LENGTHS", (130,))
    folder = bench_trained.trained_folder(tmp_path)
    assert bench_trained.trained_folder(tmp_path) == folder
    trained = bench_models.World(folder)
    shapes = [{name: each.shape for name, each in one.model().named_parameters()} for one in (world, trained)]
    assert shapes[0] == shapes[1]
    batch = bench_trained._batch(trained, trained.prompts(130), random.Random(5))
    with torch.no_grad():
        found = trained.policy()(batch)
    assert -found.logprobs.mean() < 0.8 * math.log(bench_models.VOCABULARY)
    assert batch.completion_mask.all()


def test_drafts_are_a_variant_of_iterations_alone():
    assert bench_step.variants_of(bench_step.parse(["--iteration"])) == ["trl", "ours", "drafts"]
    with pytest.raises(benching.BenchError, match="variant drafts is not there for these options"):
        bench_step.variants_of(bench_step.parse(["--variants", "ours", "drafts"]))


def test_the_notes_of_an_iteration_with_drafts_are_sums_over_sources():
    metrics = {"rollout/decode_passes": 20.0, "rollout/drafted/own": 10.0, "rollout/accepted/own": 0.5}
    metrics |= {"rollout/drafted/recent": 30.0, "rollout/accepted/recent": 0.9}
    assert bench_ours._decoding(metrics, 64) == {"passes": 20.0, "drafted": 40.0, "acceptance": pytest.approx(0.8)}
    assert bench_ours._decoding({}, 64) == {"passes": 64.0, "drafted": 0.0}


def test_the_large_shape_computes_the_same_in_every_layout(world, monkeypatch):
    """The code of `--shape 3b`, at sizes for a CPU."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000000.0}
    text = {**sizes, "intermediate_size": 128, "vocab_size": 4096, "rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    monkeypatch.setitem(bench_models.RELEASED_3B, "text", text)
    monkeypatch.setitem(bench_models.RELEASED_3B, "vision", {**vision, "fullatt_block_indexes": [1]})
    large = replace(world, shape="3b", dtype=torch.bfloat16)
    spec = {"length": 130, "tokens": 5, "group_size": 3, "freeze_tower": False, "checkpointing": True}
    found = {}
    for variant in ("plain", "mask", "ours"):
        part = bench_ours.TrainingPart(large, {**spec, "variant": variant})
        assert next(part.model.parameters()).dtype == torch.bfloat16
        evidence = {name: value.float().numpy() for name, value in part.evidence_of(ragged=True).items()}
        found[variant] = {name: value for name, value in evidence.items() if not name.startswith("gradient.")}
    for variant in ("mask", "ours"):
        differences = bench_parity.compare(found["plain"], found[variant])
        bench_parity.check(differences, bench_parity.BFLOAT16, variant)
