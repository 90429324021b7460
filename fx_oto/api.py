"""The facade: prepare, compress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

from torch import nn
from torch.fx import GraphModule

from fx_oto.analysis.engine import Attention
from fx_oto.capture import Parts, trace, unwrapped
from fx_oto.core.context import Context
from fx_oto.core.errors import MissingResultError, SettingsError
from fx_oto.core.patterns import patterns_in
from fx_oto.core.records import PassRecord
from fx_oto.core.warn import warn
from fx_oto.deploy.comparing import check_around, other_weights
from fx_oto.deploy.write_back import write_back
from fx_oto.framework.pipeline import Pipeline
from fx_oto.framework.stages import Stage
from fx_oto.framework.trajectory import Trajectory
from fx_oto.optim.dhspg import DHSPG
from fx_oto.passes.dependency_analysis import DependencyAnalysis, token_ids
from fx_oto.passes.drop_branches import DropBranches
from fx_oto.passes.fold_batchnorm import FoldBatchNorm
from fx_oto.passes.mask_insertion import MaskInsertion
from fx_oto.passes.physical_slicing import PhysicalSlicing
from fx_oto.passes.verification import Verification
from fx_oto.passes.zig_partition import ZIGPartition
from fx_oto.zigs.partition import partition

__all__ = ["compress", "default_pipeline", "prepare"]


def default_pipeline(
    unprunable: Iterable[str] = (),
    attention: Attention = "heads",
    on_pass: Callable[[PassRecord], object] | None = None,
    *,
    prune_vocabulary: bool = False,
    keep_tokens: Iterable[int] = (),
) -> Pipeline:
    """The passes that ``prepare`` runs, in order.

    Args:
        unprunable: glob patterns, or one, of parameter or module names that must be kept whole.
        attention: what attention loses: whole ``"heads"``, or ``"head_dim"``, the same positions of every head.
        on_pass: called with each ``PassRecord`` after its pass.
        prune_vocabulary: as for ``prepare``.
        keep_tokens: as for ``prepare``.

    Returns:
        An immutable sequence of passes, of which ``insert_before``, ``insert_after``, ``replace`` and ``without`` make
        others.

    Raises:
        SettingsError: ``attention`` is neither of the two.

    Example:
        >>> import fx_oto
        >>> [stage.name for stage in fx_oto.default_pipeline()]
        ['dependency-analysis', 'zig-partition', 'mask-insertion']
    """
    return Pipeline(
        (
            # which indices of which axes must go together
            DependencyAnalysis(attention, prune_vocabulary, token_ids(keep_tokens)),
            ZIGPartition(patterns_in(unprunable)),  # families of groups that can go
            MaskInsertion(),  # one switch for each group
        ),
        on_pass,
    )


def prepare(  # noqa: PLR0913 - options are keyword arguments
    model: nn.Module,
    example_inputs: Any = None,
    *,
    passes: Pipeline | None = None,
    unprunable: Iterable[str] = (),
    attention: Attention = "heads",
    prune_vocabulary: bool = False,
    keep_tokens: Iterable[int] = (),
    parts: Parts = (),
    on_pass: Callable[[PassRecord], object] | None = None,
) -> GraphModule:
    """Trace a model, find its zero-invariant groups and insert their masks.

    Args:
        model: any module, or a GraphModule; it is not changed, and the result shares its parameters.
        example_inputs: a tensor, a tuple, a dict of keyword arguments or ``(args, kwargs)``; may be left out for
            a GraphModule that was traced by ``fx_oto.trace``.
        passes: the pipeline to run instead of ``default_pipeline(unprunable, attention)``.
        unprunable: glob patterns, or one, of parameter or module names that must be kept whole.
        attention: what multi-head attention loses: whole ``"heads"``, or with ``"head_dim"`` the same positions of
            every head's width, those of queries and keys together. Scores are scaled by the original width.
        prune_vocabulary: let tokens go, too: rows of the embedding that token ids among the inputs look up, and their
            scores in the outputs, which share its rows or are as many. The compact model counts ids anew, from 0:
            ``Context.of(small).kept["name of the embedding", 0]`` holds the ids that are left. Positions and token
            types, which are looked up in shorter tables, stay.
        keep_tokens: ids of those that stay in any case, such as the special ones.
        parts: names of submodules that are captured one by one in the place of the whole model, such as ``("backbone",
            "rpn.head")`` of a detector, whose other code takes lists of images and chooses boxes. The model is run on
            the example inputs in both training modes to see what it gives to them. What they take and return stays
            whole, but for what the parts in a tuple hand to each other: ``(("backbone", "head"),)`` says that nothing
            else reads that. Train the model itself; the graph takes what the parts do, and
            ``compress(gm, into=model)`` returns the whole model.
        on_pass: called with the ``PassRecord`` of each pass of the default pipeline after it, such as ``print``.

    Returns:
        A GraphModule that behaves as the model in both training modes, or as its parts. It holds the parameters that
        the graph does not use as well, such as those of a head that only a loss calls: they are trained, and not cut.

    Raises:
        MissingResultError: there are no example inputs, and the model was not traced by ``fx_oto.trace``.
        TraceError: the model cannot be captured.
        InputError: the model does not run on the example inputs.
        SettingsError: a pattern matches nothing, ``attention`` is neither of the two, or options of the default
            pipeline are given with another one.
        PassError: a pass failed or left a graph that is not sound.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> fx_oto.partition(gm).group_sparsity()
        0.0
    """
    options: dict[str, Any] = {"unprunable": unprunable, "attention": attention, "on_pass": on_pass}
    options |= {"prune_vocabulary": prune_vocabulary, "keep_tokens": token_ids(keep_tokens)}
    if passes is None:
        passes = default_pipeline(**options)
    elif not isinstance(passes, Pipeline):
        raise SettingsError(
            f"passes must be a fx_oto.Pipeline, such as fx_oto.default_pipeline(); found {passes!r:.60}"
        )
    elif given := _given(options):
        raise SettingsError(
            f"{', '.join(given)} cannot be used with passes=…: they are options of fx_oto.default_pipeline, of which "
            "such a pipeline can be made"
        )
    if example_inputs is None:
        if not isinstance(model, GraphModule) or "fx_oto" not in model.meta:
            raise MissingResultError(
                "prepare needs example_inputs, such as torch.randn(2, 3, 224, 224), to trace a model"
            )
        gm = trace(model, Context.of(model).inputs)
    else:
        gm = trace(model, example_inputs, parts=parts)
    return passes.run(gm)


@overload
def compress(model: nn.Module, example_inputs: Any = None, *, into: None = None, **options: Any) -> GraphModule: ...


@overload
def compress(model: nn.Module, example_inputs: Any = None, *, into: nn.Module, **options: Any) -> nn.Module: ...


def compress(  # noqa: PLR0913 - options are keyword arguments
    model: nn.Module,
    example_inputs: Any = None,
    *,
    train: Callable[[GraphModule, DHSPG], object] | None = None,
    unprunable: Iterable[str] = (),
    attention: Attention = "heads",
    prune_vocabulary: bool = False,
    keep_tokens: Iterable[int] = (),
    verify: bool = True,
    fold_batchnorm: bool = False,
    into: nn.Module | None = None,
    on_pass: Callable[[PassRecord], object] | None = None,
    **optimizer: Any,
) -> nn.Module:
    """Cut every zero ZIG out of a model, and whole branches; with ``train``, prepare and train it first.

    Args:
        model: a prepared GraphModule, trained so that some ZIGs are zero; with ``train``, any model. Not changed
            by the cutting.
        example_inputs: needed with ``train`` if the model is not prepared.
        train: called once with the prepared GraphModule and a ``DHSPG`` optimizer: the user's training loop.
        unprunable: as for ``prepare``.
        attention: as for ``prepare``.
        prune_vocabulary: as for ``prepare``.
        keep_tokens: as for ``prepare``.
        verify: compare the outputs of the compact and the group-sparse model on the example inputs; with ``into``,
            and parts that hand tensors to each other, those of the whole models, and warn where they differ.
        fold_batchnorm: compute BatchNorm by the weights of the layers before it, for inference; see ``FoldBatchNorm``.
        into: the model that was given to ``prepare``, to get a copy of it instead, of its own class: ``write_back``.
            The weights are those of the prepared GraphModule, and so of that model; of another one a warning tells.
        on_pass: called with the ``PassRecord`` of each pass after it.
        optimizer: arguments of ``DHSPG``, such as ``lr=0.1, target_group_sparsity=0.7``.

    Returns:
        A GraphModule with parameters of its own and the outputs of the group-sparse model; with ``into``, a copy of
        that model which computes the same.

    Raises:
        MissingResultError: the model is not prepared and no ``train`` is given.
        SettingsError: arguments that only ``train`` needs are given without it, or those of ``prepare`` although the
            model is prepared; BatchNorm is to be folded in training mode, or in a model with layers for it.
        NothingToCompressError: no ZIG is zero.
        SlicingError: all ZIGs of a family are zero that an output depends on.
        VerificationError: the outputs differ; the text names the first node that does.

    With ``train``, whatever ends the training or the cutting, an interruption as well, holds the prepared GraphModule
    in its attribute ``gm``: what was trained is not lost with a model that nobody else holds.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> fx_oto.compress(gm).get_submodule("0")
        Linear(in_features=4, out_features=4, bias=True)
    """
    options: dict[str, Any] = {"unprunable": unprunable, "attention": attention}
    options |= {"prune_vocabulary": prune_vocabulary, "keep_tokens": token_ids(keep_tokens)}
    if fold_batchnorm and into is not None:
        raise SettingsError(
            "fold_batchnorm leaves out layers that the model which is given by into has: compress without one of them"
        )
    if train is not None and not callable(train):
        raise SettingsError(f"train must be a function (gm, optimizer) that trains; found {train!r:.60}")
    if train is None:
        if found := [*optimizer, *_given({**options, "example_inputs": example_inputs is not None})]:
            raise SettingsError(
                f"without train=…, compress only cuts a prepared GraphModule, so {', '.join(found)} cannot be used: "
                "pass them to fx_oto.prepare or fx_oto.DHSPG, or give train"
            )
        return _cut(model, fold_batchnorm, verify, into, on_pass)
    gm = _prepared(model, example_inputs, options, on_pass)
    trainer = DHSPG(gm, **optimizer)
    try:
        train(gm, trainer)
        return _cut(gm, fold_batchnorm, verify, into, on_pass)
    except BaseException as error:  # nobody else may hold the model
        error.gm = gm  # type: ignore[attr-defined]
        error.add_note(
            "What was trained is not lost: the prepared GraphModule is the attribute gm of this error (in a notebook, "
            "sys.last_value.gm); fx_oto.compress(gm) cuts it"
        )
        raise


def _cut(
    gm: Any, fold_batchnorm: bool, verify: bool, into: nn.Module | None, on_pass: Callable[[PassRecord], object] | None
) -> nn.Module:
    if (original := Context.of(gm).original) is not None:
        original.share(gm)
    _tell_of_training(gm)
    small = Pipeline(tuple(_stages(gm, fold_batchnorm, verify)), on_pass).run(gm)
    return small if into is None else _written(gm, small, into, verify)


def _given(options: dict[str, Any]) -> list[str]:
    """The names of options that are not as they are by default."""
    return [name for name, value in options.items() if value and (name, value) != ("attention", "heads")]


def _prepared(model: nn.Module, example_inputs: Any, options: dict[str, Any], on_pass: Any) -> GraphModule:
    if not isinstance(model, GraphModule) or "fx_oto" not in model.meta or example_inputs is not None:
        return prepare(model, example_inputs, **options, on_pass=on_pass)
    if given := _given(options):
        raise SettingsError(
            f"the GraphModule is prepared already, so {', '.join(given)} cannot be used: pass them to fx_oto.prepare"
        )
    return model


def _tell_of_training(gm: GraphModule) -> None:
    """Warn of groups that a training has finished and that are back, and of a target that it did not reach."""
    training = Context.of(gm).results.get(Trajectory)
    zeros = partition(gm).zeros() if training is not None and training.steps else []
    if training is not None and any(zero.any() for zero in zeros):
        if revived := training.revived(zeros):
            warn(revived)
        if training.unfinished:
            warn(f"{training.unfinished} Now the group sparsity is {partition(gm).group_sparsity():.4f}")


def _written(gm: GraphModule, small: GraphModule, model: nn.Module, verify: bool) -> nn.Module:
    """The compact graph of ``gm`` written back into a copy of the model."""
    new, model = write_back(small, model), unwrapped(model)
    if name := other_weights(gm, model):
        warn(
            f"{name!r} of the model that into gives holds other numbers than gm, whose weights are compressed: to "
            "compress an average or a checkpoint, load its state into the model that was given to prepare first"
        )
    if verify:
        check_around(model, new, small)
    return new


def _stages(gm: GraphModule, fold_batchnorm: bool, verify: bool) -> Iterator[Stage]:
    """The passes that ``compress`` runs."""
    yield PhysicalSlicing()
    if DropBranches.finds_any(gm):
        yield DropBranches()
    if fold_batchnorm:
        yield FoldBatchNorm()
    if verify:
        yield Verification(gm)
