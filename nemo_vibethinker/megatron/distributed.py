"""Process groups of a run: torch.distributed and Megatron's tensor, pipeline, context and data parallel groups."""

import datetime
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.distributed import ProcessGroup

from nemo_vibethinker.config import Config
from nemo_vibethinker.megatron.platform import install_cpu_platform

T = TypeVar("T")
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


def initialize(config: Config) -> None:
    """Join the process group (from torchrun's environment, or alone) and build Megatron's groups. Idempotent.

    Raises:
        ValueError: the number of processes is not tensor * pipeline * context * data of the configuration.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron's order of communication and compute
    on_cpu = install_cpu_platform()
    torch.set_num_threads(config.cluster.threads_per_process)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != config.world_size:
        raise ValueError(
            f"{world_size} processes were started, but scale.parallel asks for "
            f"tensor*pipeline*context*data={config.world_size}"
        )
    if not torch.distributed.is_initialized():
        _join(world_size, "gloo" if on_cpu else "nccl")
    from megatron.core import parallel_state, tensor_parallel

    virtual = config.scale.parallel.virtual_pipeline
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.scale.parallel.tensor,
            pipeline_model_parallel_size=config.scale.parallel.pipeline,
            virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
            context_parallel_size=config.scale.parallel.context,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(config.seed + 1)


def _join(world_size: int, backend: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    else:
        torch.distributed.init_process_group(backend, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)


def is_main() -> bool:
    """Whether this process writes the run's files: the first rank."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def barrier() -> None:
    """Wait for all processes; nothing to wait for outside a process group."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The picklable `value` of rank `source`, on every rank."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=source)
    return box[0]


def first_of_all_ranks(value: T | None) -> T | None:
    """The picklable value of the first rank that has one; None where none has, at the price of one small all-reduce."""
    count = torch.tensor([int(value is not None)])
    torch.distributed.all_reduce(count, group=_host_group())
    if not count.item():
        return None
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=_host_group())
    return next(found for found in values if found is not None)


@functools.cache
def _host_group() -> ProcessGroup:
    """All ranks, over gloo: for what lies in host memory."""
    world = cast(ProcessGroup, torch.distributed.group.WORLD)
    if torch.distributed.get_backend() == "gloo":
        return world
    return cast(ProcessGroup, torch.distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT))


def largest_of_all_ranks(value: float) -> float:
    """The largest `value` of all processes, on each of them."""
    box = torch.tensor([value], dtype=torch.float64)
    torch.distributed.all_reduce(box, op=torch.distributed.ReduceOp.MAX, group=_host_group())
    return float(box)


def gather_over_data_parallel(value: Any) -> list[Any]:
    """The picklable `value` of every data-parallel rank, in rank order, on each of them."""
    from megatron.core import parallel_state

    values: list[Any] = [None] * parallel_state.get_data_parallel_world_size()
    torch.distributed.all_gather_object(values, value, group=host_data_parallel_group())
    return values


def tensor_parallel_group() -> ProcessGroup:
    """The ranks that share the layers of one pipeline stage of one replica."""
    from megatron.core import parallel_state

    return cast(ProcessGroup, parallel_state.get_tensor_model_parallel_group())


def pipeline_parallel_group() -> ProcessGroup:
    """The pipeline stages of one replica."""
    from megatron.core import parallel_state

    return cast(ProcessGroup, parallel_state.get_pipeline_model_parallel_group())


def context_parallel_group() -> ProcessGroup:
    """The ranks that share the tokens of the same samples."""
    from megatron.core import parallel_state

    return cast(ProcessGroup, parallel_state.get_context_parallel_group())


def host_data_parallel_group(with_context_parallel: bool = False) -> ProcessGroup:
    """The replicas of one part of the model, over gloo: for figures that lie in host memory."""
    from megatron.core import parallel_state

    return cast(ProcessGroup, parallel_state.get_data_parallel_group_gloo(with_context_parallel))


def once_per_replica(compute: Callable[[], T]) -> T:
    """The picklable result of `compute`, run by one rank of each replica and told to its others."""
    from megatron.core import parallel_state

    model_parallel = cast(ProcessGroup, parallel_state.get_model_parallel_group())
    box: list[T | None] = [None]
    if leads_replica():
        box[0] = compute()
    for group in (model_parallel, context_parallel_group()):  # first the ranks of context 0, then the other contexts
        if group.size() > 1:
            source = torch.distributed.get_process_group_ranks(group)[0]
            torch.distributed.broadcast_object_list(box, src=source, group=group)
    return cast(T, box[0])


def gather_over_replica(value: T) -> list[T]:
    """The picklable `value` of every rank of this replica, on each of them; the leading rank's comes first."""
    from megatron.core import parallel_state

    values = [value]
    for group in (cast(ProcessGroup, parallel_state.get_model_parallel_group()), context_parallel_group()):
        lists: list[Any] = [None] * group.size()
        torch.distributed.all_gather_object(lists, values, group=group)
        values = [value for part in lists for value in part]
    return values


def leads_replica() -> bool:
    """Whether this is the leading rank of its replica, which `once_per_replica` computes on."""
    from megatron.core import parallel_state

    model_parallel = cast(ProcessGroup, parallel_state.get_model_parallel_group())
    return model_parallel.rank() == context_parallel_group().rank() == 0


def data_parallel_rank_and_size() -> tuple[int, int]:
    """(rank, size) of this process among the model replicas."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
