"""What an engine did beside the trainer stands in the trace at the time at which it was done."""

import json
import time

from torch.profiler import ProfilerActivity, profile, record_function

from lightning_mmrl.training.callbacks.profile import add_spans


def test_spans_of_an_engine_lie_beside_those_of_the_trainer(tmp_path):
    tracer = profile(activities=[ProfilerActivity.CPU])
    tracer.start()
    start = time.time()
    with record_function("mmrl/optimize"):
        time.sleep(0.05)
    end = time.time()
    tracer.stop()
    tracer.export_chrome_trace(str(tmp_path / "trace.json"))
    before = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    add_spans(tmp_path / "trace.json", [])
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"] == before
    add_spans(tmp_path / "trace.json", [("engine", "sample 3", start - 1.0, end)])
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    (update,) = [event for event in events if event.get("name") == "mmrl/optimize" and event["ph"] == "X"]
    (sampling,) = [event for event in events if event.get("cat") == "ahead"]
    assert len(events) == len(before) + 1
    assert (sampling["tid"], sampling["name"]) == ("engine", "sample 3")
    assert abs(sampling["ts"] + 1e6 - update["ts"]) < 2e4  # microseconds
    assert abs(sampling["ts"] + sampling["dur"] - update["ts"] - update["dur"]) < 2e4
