"""The command line: refused where it alone shows what is wrong, composed, and checked by Hydra."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from t5ts import distributed
from t5ts.checks import (
    GROUPS,
    check,
    field_problems,
    is_key,
    key_of_others,
    refuse_any,
    setting_keys,
    structure_problems,
    unknown_key,
)
from t5ts.config import CONF, Config, from_hydra, register
from t5ts.errors import ConfigError

#: What a command may remove from the configuration (`~arm`): groups that need no option.
REMOVABLE = ("arm", "experiment", "data@ood", "ood")
#: Hydra's directories, without which a run would write into the working directory.
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")
#: OmegaConf's message on a key that the chosen option lacks, as it is or in one of Hydra's.
_ABSENT = re.compile(r"(?s)(?P<where>In '[^']*': )?[^\n]*\n?Key '.*full_key: (?P<key>\S+)")


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse everything that the command line alone shows to be wrong.

    An unknown key is refused even with `+`: Hydra would add it, but nothing would read it.

    Args:
        arguments: The command line; flags are left to Hydra, as are its own keys.

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    if {"-sc", "--shell-completion"}.intersection(arguments):
        return  # its words (install=bash) are not overrides
    flags = [part for argument in arguments for part in argument.split("=", 1)]
    trees = [CONF]
    trees += [Path(value) for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    of_ood = [line for line in arguments if line.lstrip("+").startswith("ood.")]
    may_have_ood = "--config-name" in flags or "-cn" in flags
    for line in arguments:
        if line.startswith("-") or not ("=" in line or line.startswith("~")):
            continue  # a flag or its value; Hydra refuses any other word
        override = _parsed(line)
        key = override.get_key_element().lstrip("+~")
        group = key.partition("@")[0]  # data@ood=…: an option of data, at the place of ood
        if f"{key}.".startswith("hydra.callbacks.check.") or key == "hydra.callbacks":
            raise ConfigError(f"{line}: the configuration check cannot be switched off.")
        if override.is_delete() and not key.startswith("hydra.") and key not in REMOVABLE:
            known = key == "hydra" or is_key(key)
            needed = (
                f"{line}: a run needs {key}; leave it out for its default, or set another value."
            )
            raise ConfigError(needed if known else unknown_key(key))
        if group in GROUPS:
            files = {p.stem: p for tree in trees for p in (tree / group).glob("*.yaml")}
            options = _options(override)
            if unknown := [option for option in options if option not in files]:
                none = f", or ~{key} for none" if "@" in key else ""
                allowed = f"allowed: {', '.join(sorted(files))}{none}"
                raise ConfigError(f"{key}={','.join(unknown)} does not exist; {allowed}.")
            presets = [files[option].read_text() for option in options]
            may_have_ood |= key == "data@ood" or not options or "data@ood" in "".join(presets)
        elif not key.startswith(("hydra.", "hydra/")) and key not in setting_keys():
            raise ConfigError(unknown_key(key or line))
        elif key in DIRECTORIES and override.value() in (None, ""):
            raise ConfigError(f"{line}: allowed: a directory's path.")
    if of_ood and ("~data@ood" in arguments or not may_have_ood):
        raise ConfigError(f"{of_ood[0]} needs another series to test on: choose data@ood=OPTION.")


def compose_config(overrides: Sequence[str]) -> tuple[Config, Path]:
    """The configuration of a command line, and the run directory that it would have.

    Raises:
        ConfigError: as `check_overrides`, or if Hydra cannot compose it.
    """
    register()
    check_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=list(overrides), return_hydra_config=True)
        return from_hydra(composed), Path(composed.hydra.run.dir)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composition_message(error)) from error


def composition_message(error: BaseException | None) -> str:
    """Why Hydra could not compose: an error and its causes, each line once.

    Without OmegaConf's notes on its own types, and without Hydra's advice to add an unknown key.
    """
    lines: list[str] = []
    while error is not None:
        if (found := _ABSENT.search(str(error))) and found["key"] in setting_keys():
            return (found["where"] or "") + key_of_others(found["key"])
        lines += (str(error) or type(error).__name__).splitlines()
        error = error.__cause__
    shown = (line.strip() for line in lines if "_type=" not in line and "use +" not in line)
    return "\n".join(dict.fromkeys(filter(None, shown)))


def _parsed(line: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([line])[0]
    except HydraException as error:
        key, _, value = line.partition("=")
        hint = f"quote its text, as in \"{key}='{value}'\"" if value else "write KEY=VALUE"
        if value.startswith("~"):
            hint += ", or write the whole path"
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{line} does not fit Hydra's grammar ({cause}): {hint}.") from error


def _options(override: Override) -> list[str]:
    """The options in an override; none if Hydra has to find them (`glob(*)`, `${…}`)."""
    value = override.value()
    named: list[Any] = [] if override.is_delete() or override.is_sweep_override() else [value]
    if isinstance(value, ChoiceSweep):
        named = [x.text if isinstance(x, QuotedString) else x for x in value.list]
    texts = ["null" if option is None else str(option) for option in named]
    return [text for text in texts if "${" not in text]


class CheckFirst(Callback):
    """Hydra's callback: an impossible configuration is refused before it gets a directory.

    Args:
        arm: The options that the chosen named arm consists of, by group; `from_hydra` reads them.
    """

    def __init__(self, arm: Mapping[str, str] | None = None) -> None:
        pass

    def on_run_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Check the one run."""
        with _exit_if_refused():
            check(from_hydra(config))

    def on_multirun_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Refuse intervals in Hydra's own grid search, and values that no job could have."""
        with _exit_if_refused():
            if distributed.world_size() > 1:
                raise ConfigError(
                    "--multirun under torchrun, which trains one run in several processes: for"
                    " several runs use a launcher (hydra/launcher=joblib) without torchrun."
                )
            _check_subdir(config)
            if "PlainSweeper" not in str(config.hydra.sweeper.get("_target_")):
                return
            for line in config.hydra.overrides.task:
                if _parsed(line).is_interval_sweep():
                    raise ConfigError(
                        f"{line}: Hydra's grid search cannot take an interval; add"
                        " hydra/sweeper=t5ts, or list values (A,B,C or range(A,B,STEP))."
                    )
            try:
                common = from_hydra(config)
            except ConfigError:
                return  # incomplete without the swept values; each job is checked before it starts
            refuse_any(list(structure_problems(common)) or list(field_problems(common)))


def _check_subdir(config: DictConfig) -> None:
    """Refuse directories of jobs that are not below the sweep's."""
    composed = config.copy()
    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = 0
    try:
        subdir = composed.hydra.sweep.subdir
    except OmegaConfBaseException:
        return  # it needs a swept value
    path = PurePath(str(subdir or ""))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"hydra.sweep.subdir={subdir}: allowed: a path below the sweep's directory, without"
            " '..'; to move the sweep, set hydra.sweep.dir=DIR."
        )


@contextmanager
def _exit_if_refused() -> Iterator[None]:
    """Exit with the message: Hydra would turn a callback's exceptions into warnings."""
    try:
        yield
    except ConfigError as error:
        distributed.print_once(f"t5ts: {error}")
        sys.exit(2)
