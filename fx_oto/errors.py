"""Every error and warning that fx_oto raises on purpose."""

from __future__ import annotations

__all__ = [
    "FxOtoError",
    "FxOtoWarning",
    "InputError",
    "MissingPackageError",
    "MissingResultError",
    "NothingToCompressError",
    "PassError",
    "RuleError",
    "SettingsError",
    "SlicingError",
    "TraceError",
    "TrainingError",
    "VerificationError",
]


class FxOtoError(Exception):
    """Base of all errors of fx_oto: catch this one to catch them all."""


class TraceError(FxOtoError):
    """The model cannot be captured as a graph; the text names the user's source line."""


class InputError(FxOtoError, ValueError):
    """The example inputs, or the model's parameters, are not what the call needs."""


class MissingPackageError(FxOtoError, ImportError):
    """Something needs an optional package that is not installed; the text says how to install it."""


class MissingResultError(FxOtoError, LookupError):
    """A result was asked for that no pass has provided; the text names the pass that does."""


class NothingToCompressError(FxOtoError):
    """``compress`` was asked to cut a model in which no ZIG is zero."""


class SettingsError(FxOtoError, ValueError):
    """An option has a value that cannot work."""


class TrainingError(FxOtoError, RuntimeError):
    """A step cannot be taken: there are no gradients, or they are not finite; nothing was changed."""


class SlicingError(FxOtoError):
    """A removal that was asked for cannot be carried out; the text names the node."""


class VerificationError(FxOtoError):
    """The compact model does not return the outputs of the group-sparse model."""


class PassError(FxOtoError):
    """A pass failed or left an invalid graph; the text names the pass."""


class RuleError(FxOtoError):
    """A rule of the user's for an op or a leaf module cannot be registered, or does not fit the call it is given."""


class FxOtoWarning(UserWarning):
    """Something was kept whole, or not done, and the user may want to know why."""
