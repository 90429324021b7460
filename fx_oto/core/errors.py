"""Every error and warning that fx_oto raises on purpose."""

from __future__ import annotations

__all__ = [
    "FileError",
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
    """Base of all errors of fx_oto: catch this one to catch them all.

    Example:
        >>> import torch, fx_oto
        >>> try:
        ...     fx_oto.compress(torch.nn.Linear(4, 8))
        ... except fx_oto.FxOtoError as error:
        ...     print(type(error).__name__)
        MissingResultError
    """


class TraceError(FxOtoError):
    """The model cannot be captured as a graph; the text names the user's source line.

    Example:
        >>> import torch, fx_oto
        >>> fx_oto.trace(torch.relu, torch.randn(2, 4))
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.TraceError: expected a torch.nn.Module, found builtin_function_or_method: pass ...
    """


class InputError(FxOtoError, ValueError):
    """The example inputs, or the model's parameters, are not what the call needs.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fx_oto.prepare(net, torch.randn(2, 3))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.InputError: the model does not run on the example inputs in the module '0' ...
    """


class MissingPackageError(FxOtoError, ImportError):
    """Something needs an optional package that is not installed; the text says how to install it.

    Example:
        >>> import fx_oto
        >>> try:  # which works with the extra, pip install 'fx-oto[plot]'
        ...     picture = fx_oto.plot_tradeoff({"DHSPG": [(35.2, 91.3), (16.1, 90.4)]})
        ... except fx_oto.MissingPackageError as error:
        ...     print(error)
    """


class MissingResultError(FxOtoError, LookupError):
    """A result was asked for that no pass has provided; the text names the pass that does.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fx_oto.partition(fx_oto.trace(net, torch.randn(2, 4)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.MissingResultError: no Partition is known for this GraphModule: run the pass ...
    """


class NothingToCompressError(FxOtoError):
    """``compress`` was asked to cut a model in which no ZIG is zero.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> fx_oto.compress(gm)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.NothingToCompressError: none of the 8 ZIGs is zero, so there is nothing to cut: train ...
    """


class SettingsError(FxOtoError, ValueError):
    """An option has a value that cannot work.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> fx_oto.partition(gm).zero_(1.5)
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.SettingsError: fraction must be a number in [0, 1], found 1.5
    """


class TrainingError(FxOtoError, RuntimeError):
    """A step cannot be taken: there are no gradients, or they are not finite; nothing was changed.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=20)
        >>> optimizer.step()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.TrainingError: no parameter has a gradient: call backward() before step(); ...
    """


class SlicingError(FxOtoError):
    """A removal that was asked for cannot be carried out; the text names the node.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_zigs_(0, torch.arange(8))
        >>> fx_oto.compress(gm)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.SlicingError: all ZIGs of the family '0.weight' are zero, so the network would be ...
    """


class VerificationError(FxOtoError):
    """The compact model does not return the outputs of the group-sparse one; the text names the first such node.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> small = fx_oto.compress(gm)
        >>> _ = gm.get_parameter("2.bias").data.add_(1)  # the model goes on without its compact copy
        >>> fx_oto.Verification(gm)(small)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.VerificationError: the compact model differs from the group-sparse one by ...
    """


class PassError(FxOtoError):
    """A pass failed or left an invalid graph; the text names the pass.

    Example:
        >>> import fx_oto
        >>> fx_oto.default_pipeline().without("fold")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.PassError: no pass is called 'fold'; this pipeline has dependency-analysis, ...
    """


class FileError(FxOtoError):
    """A model cannot be written to a file, or a file is not what ``fx_oto.save`` has written.

    Example:
        >>> import fx_oto
        >>> fx_oto.load("nowhere.safetensors")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.FileError: nowhere.safetensors cannot be read: there is no such file
    """


class RuleError(FxOtoError):
    """A rule of the user's for an op or a leaf module cannot be registered, or does not fit the call it is given.

    Example:
        >>> import torch, fx_oto
        >>> fx_oto.register_rule("mylib::scale", fx_oto.kinds.elementwise())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fx_oto.core.errors.RuleError: register_rule expects an op such as torch.ops.mylib.scale, found ...
    """


class FxOtoWarning(UserWarning):
    """Something was kept whole, or not done, and the user may want to know why.

    Example:
        >>> import torch, warnings, fx_oto
        >>> class Orthogonal(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.linalg.qr(x).Q
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always", fx_oto.FxOtoWarning)
        ...     gm = fx_oto.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), Orthogonal()), torch.randn(2, 4))
        >>> print(caught[0].message)  # doctest: +ELLIPSIS
        no rule is known for the op linalg_qr ...: what enters it is kept whole. Teach it with fx_oto.register_rule, ...
    """
