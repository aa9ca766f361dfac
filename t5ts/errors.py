"""Errors that the user can fix: one message, no traceback."""


class UserError(ValueError):
    """The user's request cannot be carried out: what is wrong, where, what is allowed, what to do.

    Command lines print it without a traceback and exit with status 2.
    """


class ConfigError(UserError):
    """A configuration value, or a pair of values, is impossible."""


class DataError(UserError):
    """The data is missing or not what it should be."""


class WeightsError(UserError):
    """The encoder's weights are missing or not what they should be."""


class ResumeError(UserError):
    """A checkpoint is corrupted or belongs to another run."""


class InputsChanged(ResumeError):
    """A run's data, weights, device or precision differ from those it started with."""


class DirectoryInUse(ResumeError):
    """Another process has locked the run directory."""


class OutputError(UserError):
    """The run directory cannot be written: a full disk, a read-only or removed folder."""


class TrainingError(UserError):
    """A loss or a gradient is no longer finite; names the step and the checkpoint to resume."""


class OutOfMemory(UserError):
    """The run does not fit into the memory of its device."""


class Interrupted(Exception):
    """The run was asked to stop, has written its checkpoint, and can be resumed."""
