"""Staged SFT and RL training for multimodal reasoning models on Lightning.

Importing the package loads no torch. It switches off the telemetry of the libraries below it by default; set the same
variables to another value before the import to switch it on again.
"""

import os

__version__ = "0.1.0"

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # transformers asks a service to convert what has no safetensors.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
}
for _name, _value in TELEMETRY_OFF.items():
    os.environ.setdefault(_name, _value)
