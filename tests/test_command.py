"""A reader that closes the pipe early, as `| head` does."""

import subprocess
import sys

import pytest

SAYS_MUCH = "from t5ts.command import finish; finish(lambda: print('line\\n' * 10**6))"
LEAVES = """
import sys
from t5ts.command import finish
def main():
    print("line")
    sys.exit(3)
finish(main)
"""
ENDED = "from t5ts.command import finish; finish(lambda: exec('raise KeyboardInterrupt'))"
LOGS = """
import logging, sys
from t5ts.command import ConsoleHandler, finish
def main():
    log = logging.getLogger("t5ts")
    log.addHandler(ConsoleHandler())
    for number in range(3):
        log.warning("line %s", number)
    print("trained on", file=sys.stderr)
finish(main)
"""


def unread(code: str) -> tuple[int, str]:
    """Status and stderr of a program whose output nobody reads."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    return process.returncode, said


@pytest.mark.parametrize("code", [SAYS_MUCH, LEAVES])
def test_a_closed_pipe_is_no_error(code):
    assert unread(code) == (141, "")


def test_training_goes_on_when_nobody_reads_its_lines():
    assert unread(LOGS) == (0, "trained on\n")


def test_ctrl_c_is_one_line():
    assert unread(ENDED) == (130, "t5ts: interrupted\n")


def test_the_status_is_mains():
    code = "from t5ts.command import finish; finish(lambda: 2)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 2
