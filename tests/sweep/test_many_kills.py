"""Real processes, killed at random moments: the ledger loses nothing and doubles nothing."""

from pathlib import Path

import pytest

from benchmarks.sweep_kills import run


@pytest.mark.parametrize("seed", [0, 1])
def test_sixty_trials_with_kills_and_restarts(seed: int, tmp_path: Path) -> None:
    # Long enough for kills to find trials under way, also on a busy machine.
    accidents = {"kills": 3, "restarts": 2, "seed": seed, "work_s": 0.1}
    counts = run(None, tmp_path, n_trials=60, workers=4, **accidents)
    assert counts["finished"] == counts["distinct"] == 60
    assert counts["lost"] == counts["doubled"] == counts["other_point"] == 0
    assert counts["attempts"] > 60  # something was killed in the middle
