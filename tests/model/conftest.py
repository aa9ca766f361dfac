"""Fixtures of the model's tests."""

from pathlib import Path

import pytest
from language_models import save


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints as transformers saves them."""
    root = tmp_path_factory.mktemp("hf")
    return {kind: save(kind, root / kind) for kind in ("bert", "gpt2", "llama", "xglm")}
