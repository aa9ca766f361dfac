"""What a test may do without, and where it may not: `T5TS_REQUIRE=chromium,postgres`."""

import os
from typing import NoReturn

import pytest


def missing(what: str, reason: str) -> NoReturn:
    """Skip for want of something, said at the end of the run; a failure where it is required.

    Args:
        what: Its word in `T5TS_REQUIRE`, a list with commas that `.ci/run` sets.
        reason: What is missing and how to get it.
    """
    if what in os.environ.get("T5TS_REQUIRE", "").split(","):
        pytest.fail(f"T5TS_REQUIRE={what}, but {reason}", pytrace=False)
    pytest.skip(f"NOT TESTED: {what}: {reason}")
