"""Trains a group: runs that share each pass of the language model."""

import logging
import signal
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sae_sweep.activations import pick_device
from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.signals import Interrupted, StopRequest
from sae_sweep.training.callbacks import Checkpoints, LogMetrics, ShowProgress
from sae_sweep.training.data import Stream
from sae_sweep.training.faults import (
    GroupTooLargeError,
    border,
    device_failed,
    explain,
    out_of_memory,
)
from sae_sweep.training.member import GroupSettings, Member, Outcome
from sae_sweep.training.module import GroupModule
from sae_sweep.training.trainee import Trainee
from sae_sweep.training.trainer import fit

logger = logging.getLogger(__name__)


def train_group(
    members: Sequence[Member],
    make_stream: Callable[[Sequence[int]], Stream],
    *,
    d_in: int,
    settings: GroupSettings,
    stop: StopRequest,
    on_finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Train members on one activation stream, each to its own budget; resume those with a checkpoint.

    The stream starts where the member with the fewest steps stopped; members ahead of it wait. Any
    exception in what a member does fails it alone, and its last checkpoint stays; one in the stream fails all
    active members, or those of the layer that it names, once every member is saved. On a CPU a member's
    weights are bit-identical alone, in any group, and after a resume.

    Args:
        members: runs with equal batch size, device and everything else that determines the stream.
        make_stream: opens an activation stream of given layers at its start.
        d_in: width of the residual stream.
        settings: intervals of logging and saving.
        stop: handler of stop signals, which are deferred to the end of a step.
        on_finished: called with each outcome as soon as it is known, while other members still train; an
            exception from it ends the group.

    Returns:
        One outcome per member, in their order.

    Raises:
        Interrupted: after a stop signal, once all active members are saved.
        GroupTooLargeError: if memory ran out with several members, once they are saved.
        RuntimeError: if the device failed, which nothing in this process survives.
    """
    device = pick_device(members[0].run.config.device)
    group = GroupModule(on_finished, stop)
    with stop.deferred():
        for member in members:
            _add(group, member, d_in, device, settings)
        group.publish()  # retire members that reached their budget in an earlier launch
        while group.active:
            _train(group, make_stream, stop, device, settings.checkpoint_every_min)
    return [group.outcomes[member.run.name] for member in members]


def _add(
    group: GroupModule, member: Member, d_in: int, device: torch.device, settings: GroupSettings
) -> None:
    """Build a member, or report why it cannot be built."""

    def fail(line: str) -> None:
        logger.error("%s: %s", member.run.name, line)
        failed.append(line)

    failed: list[str] = []
    with border(member.run.name, fail, remedy="lower dictionary", together=bool(group.active)):
        group.active.append(Trainee(member, d_in, device, settings))
    for line in failed:  # once the error is gone, and with it what its frames hold
        group.report(Outcome(member, sae=None, failed=line, seconds=0.0, tokens=0))


def _train(
    group: GroupModule,
    make_stream: Callable[[Sequence[int]], Stream],
    stop: StopRequest,
    device: torch.device,
    checkpoint_every_min: float,
) -> None:
    """Train until all members finish, or one layer's activations fail; the caller continues with the rest."""
    try:
        stream = make_stream(sorted({t.member.run.config.layer for t in group.active}))
        last = min(group.active, key=lambda trainee: trainee.learner.steps)
        if last.position is not None:
            stream.restore(last.position)
        left = max(t.member.run.config.steps for t in group.active) - last.learner.steps
        callbacks = [LogMetrics(group), Checkpoints(group, stop, checkpoint_every_min), ShowProgress(group)]
        fit(group, islice(stream, left), callbacks, device)
        _end_of_text(group)
    except SIGTERMException:
        # Lightning saw the signal before our callback did; that is between steps, so all states are complete.
        group.save()
        raise Interrupted(stop.signum or signal.SIGTERM) from None
    except GroupTooLargeError:
        group.save()  # except the member whose step failed: it goes back to its last checkpoint
        raise
    except Exception as error:  # of the stream: what members do has its own border
        _end_stream(group, error, stop)


def _end_stream(group: GroupModule, error: Exception, stop: StopRequest) -> None:
    """Save every member, also those of other layers, then fail those that need the stream.

    Raises:
        GroupTooLargeError: if memory ran out, and a smaller group may have enough of it.
        RuntimeError: if the device failed.
        Interrupted: if a stop was requested, which may have been the cause.
    """
    if device_failed(error):  # no state can be read from it
        raise error
    group.save()
    stop.raise_if_requested()
    if out_of_memory(error) and len(group.active) > 1:
        raise GroupTooLargeError(first_line(error)) from error
    line = explain(error, "lower activations.lm_batch")
    logger.error("the activations end: %s", line)
    group.fail(error, line, layer=getattr(error, "layer", None))


def _end_of_text(group: GroupModule) -> None:
    """Retire members whose text ended before their budget (`dataset.exhausted=stop`)."""
    group.each(_complete_early)
    for trainee in list(group.active):
        group.retire(trainee)


def _complete_early(trainee: Trainee) -> None:
    tokens = trainee.learner.tokens
    if not tokens:
        raise SaeSweepError("the training text is shorter than one batch: lower batch, or give it more text")
    if trainee.failed is None:
        name = trainee.member.run.name
        logger.warning("%s: the text ended at %d tokens, before the budget", name, tokens)
        trainee.complete()
