"""The asyncio process imports blitzgw.weights: what that costs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "gguf", "huggingface_hub", "safetensors", "tokenizers")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, blitzgw.weights.cache, blitzgw.weights.info, blitzgw.weights.loader; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert out.stdout.decode().strip() == "[]"
