"""Optional requirements of tests; `T5TS_REQUIRE=chromium,postgres` makes them mandatory."""

import os
from typing import NoReturn

import pytest


def missing(what: str, reason: str) -> NoReturn:
    """Skip if something is missing, with a note at the end; fail where it is required.

    Args:
        what: Its word in `T5TS_REQUIRE`, a list with commas that `.ci/run` sets.
        reason: What is missing and how to get it.
    """
    if what in os.environ.get("T5TS_REQUIRE", "").split(","):
        pytest.fail(f"T5TS_REQUIRE={what}, but {reason}", pytrace=False)
    pytest.skip(f"NOT TESTED: {what}: {reason}")
