"""When the standing controls were last seen to pass, and on which code."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t5ts.analysis.results import read_json
from t5ts.analysis.study import Run
from t5ts.provenance import LOADED_CODE

#: Written by `make controls`, which runs them; the code's fingerprint covers the package's modules.
RECORD = Path(__file__).with_name("controls.json")


def last_seen(runs: Iterable[Run]) -> dict[str, Any] | None:
    """The record of the standing controls, as a report of these runs may quote it, or None.

    Its `is_this_code` is whether the controls, all of the runs and this report were computed by the
    same code, None if a run did not record its code.
    """
    if not RECORD.is_file():
        return None
    codes = [run.provenance.get("code") for run in runs]
    record = read_json(RECORD)
    used = {code["t5ts"] for several in codes for code in several or ()} | {LOADED_CODE}
    return record | {"is_this_code": used == {record["code"]} if all(codes) else None}
