"""Run as a program: plain vLLM, without any code of this package, continues prompts from exported folders.

`python plain_vllm.py REQUESTS.json ANSWERS.json`; a request has `folder`, `text` and `image` (a file, or null). An
answer has `prompt` (token ids), `tokens` and `logprobs` of the greedy continuation.
"""

import json
import os
import sys
from pathlib import Path

SETTINGS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def main(requests, answers):
    os.environ.update(SETTINGS)
    from PIL import Image
    from vllm import LLM, SamplingParams

    found = []
    for request in json.loads(Path(requests).read_text()):
        model = LLM(
            request["folder"], dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=2,
            kv_cache_memory_bytes=2**27, enable_chunked_prefill=False, skip_mm_profiling=True,
        )  # fmt: skip
        prompt = {"prompt": request["text"]}
        if request["image"] is not None:
            prompt["multi_modal_data"] = {"image": Image.open(request["image"])}
        sampling = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0, ignore_eos=True)
        (result,) = model.generate([prompt], sampling, use_tqdm=False)
        output = result.outputs[0]
        logprobs = [each[token].logprob for each, token in zip(output.logprobs, output.token_ids, strict=True)]
        found.append({"prompt": result.prompt_token_ids, "tokens": list(output.token_ids), "logprobs": logprobs})
        model.llm_engine.engine_core.shutdown()
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
