"""A run with the modality report: all ablations and the conflicts, on real clips, in files, console and page."""

import json

import pytest
from small_runs import SMALL

from lightning_mmrl.app.run import run_curriculum
from lightning_mmrl.cli.tables import print_comparison
from lightning_mmrl.config.compose import compose
from lightning_mmrl.settings.data import ABLATIONS
from lightning_mmrl.training.console import ConsoleProgress

pytestmark = pytest.mark.slow

NUM = 12
OVERRIDES = (
    *SMALL,
    "experiment=quickstart",
    "modality=with_conflicts",
    "order=[pretrain]",
    "stages.pretrain.num_steps=1",
    "stages.pretrain.data.batch_size=4",
    "evaluation.base=false",
    f"evaluation.limit={NUM}",
    "evaluation.max_new_tokens=16",
    "evaluation.num_resamples=50",
    "tracking=none",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    workplace = tmp_path_factory.mktemp("workplace")
    config = compose([*OVERRIDES, f"output_dir={workplace}/runs", f"data.root={workplace}/clips"])
    return run_curriculum(config, ConsoleProgress())


def test_every_variant_is_judged_on_the_same_samples_and_conflicts_once(outcome):
    folder = outcome.directory / "stages" / "00-pretrain" / "evaluation"
    results = json.loads((folder / "evaluation.json").read_text())
    variants = {f"{name}-{each}" for name in ("test", "ood") for each in ABLATIONS}
    assert results.keys() == {"test", "ood", "conflict"} | variants
    truths = {}
    for name in results:
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        truths[name] = [(each["sample_id"], each["truth"]) for each in lines]
    assert all(truths[name] == truths[name.partition("-")[0]] for name in results)
    for name in ("test", "ood"):
        for moved in ("sound", "picture"):
            counts = results[f"{name}-shuffled_{moved}"]["shuffled"]
            assert counts == {"num_shuffled": len(truths[name]), "num_same_truth": 0, "num_unchanged": 0}
        assert "shuffled" not in results[f"{name}-silent"]


def test_the_report_is_written_printed_and_on_the_page(outcome, capsys):
    folder = outcome.directory / "stages" / "00-pretrain" / "evaluation"
    report = json.loads((folder / "modality.json").read_text())
    assert report["sets"].keys() == {"test", "ood"}
    assert report["sets"]["test"]["drops"].keys() == set(ABLATIONS)
    assert report["sets"]["test"]["verdict"]["sound"]["by"] == "shuffled_sound"
    assert report["sets"]["test"]["faithfulness"].keys() == {"picture", "sound", "all"}
    assert report["conflicts"].keys() == {"conflict"}
    print_comparison(outcome)
    printed = " ".join(capsys.readouterr().out.split())
    page = (outcome.directory / "report.html").read_text()
    for said in (report["sets"]["test"]["verdict"]["sound"]["says"], report["conflicts"]["conflict"]["says"]):
        assert said in printed
        assert said in page
