"""Training on many processes, with torch's own engine: `torchrun`, `torch.distributed` (gloo on CPUs, NCCL on GPUs).

Nothing here is imported before several processes are there. The step, its rules and the loop are those of one process,
written in terms of a `Share`; here are the shares, who holds which, how activations reach them, how all stop together,
and the checkpoints.
"""

from pullback.training.distributed.layout import Layout
from pullback.training.distributed.run import SharedRun
from pullback.training.distributed.shares import FeatureShare, TokenShare
from pullback.training.distributed.team import SharedTeam, meeting
from pullback.training.distributed.world import World, join

__all__ = ["FeatureShare", "Layout", "SharedRun", "SharedTeam", "TokenShare", "World", "join", "meeting"]
