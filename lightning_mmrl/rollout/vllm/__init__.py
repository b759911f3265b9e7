"""Rollouts with vLLM 0.32, in this process or with a server; the only package that imports vllm."""
