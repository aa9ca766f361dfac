"""Real processes, killed at random moments: the ledger loses nothing and doubles nothing."""

from pathlib import Path

import pytest

from benchmarks.sweep_kills import run


@pytest.mark.parametrize("seed", [0, 1])
def test_sixty_trials_with_kills_and_restarts(seed: int, tmp_path: Path) -> None:
    counts = run(None, tmp_path, n_trials=60, workers=4, kills=3, restarts=2, seed=seed)
    assert counts["finished"] == counts["distinct"] == 60
    assert counts["lost"] == counts["doubled"] == counts["other_point"] == 0
    assert counts["attempts"] > 60  # something was killed in the middle
