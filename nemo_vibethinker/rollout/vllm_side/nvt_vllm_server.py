"""A vLLM engine at the end of a socket: `python nvt_vllm_server.py FD SETTINGS`. Runs in vLLM's environment.

Messages in:  ("call", method, arguments), answered by ("reply", value)
              ("generate", key, prompt token ids, sampling parameters), answered when the response has ended
              ("abort", keys): those responses end as they are
Messages out: ("sample", key, token ids, log-probs, finish reason, weight versions), ("reply", value), ("failed", text)

After the first failure the server ends: vLLM's workers may be out of step then. It also ends, with all its workers,
when the other end of the socket is closed, so no engine outlives its trainer.
"""
# pyright: reportMissingImports=false

import asyncio
import json
import os
import signal
import sys
import threading
from array import array
from multiprocessing.connection import Connection
from typing import Any

_WORKER_EXTENSION = "nvt_vllm_worker.WorkerExtension"  # found beside this file, which is first in sys.path


def _read(connection: Connection, loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[tuple]") -> None:
    """Forward messages, until the trainer is gone; then end this process and all it has started."""
    try:
        while True:
            loop.call_soon_threadsafe(inbox.put_nowait, connection.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


class Server:
    """Answers the messages of one trainer."""

    def __init__(self, connection: Connection, engine: Any) -> None:
        self.connection = connection
        self.engine = engine
        self.running: set[asyncio.Task[None]] = set()

    async def serve(self, inbox: "asyncio.Queue[tuple]") -> None:
        """Answer until something fails."""
        while True:
            kind, *rest = await inbox.get()
            if kind == "call":
                self.connection.send(("reply", await self._call(*rest)))
            elif kind == "abort":
                await self.engine.abort(rest[0])
            else:
                task = asyncio.create_task(self._generate(*rest))
                self.running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.running.discard(task)
        if error := task.exception():
            fail(self.connection, error)

    async def _call(self, method: str, arguments: dict[str, Any]) -> Any:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

        if method == "init_weight_transfer_engine":
            return await self.engine.init_weight_transfer_engine(WeightTransferInitRequest(**arguments))
        if method == "update_weights":
            return await self.engine.update_weights(WeightTransferUpdateRequest(**arguments))
        if method in ("parameter_checksums", "free_gpu_bytes"):
            return await self.engine.collective_rpc(method)
        return await getattr(self.engine, method)(**arguments)

    async def _generate(self, key: str, prompt: array, sampling: dict[str, Any]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            **sampling, logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        final: Any = None
        async for output in self.engine.generate({"prompt_token_ids": list(prompt)}, parameters, request_id=key):
            final = output.outputs[0]
        logprobs = final.logprobs.logprobs if final.logprobs else []
        assert len(logprobs) == len(final.token_ids), f"{len(logprobs)} log-probs of {len(final.token_ids)} tokens"
        versions = [span.version for span in final.weight_versions or []]
        tokens = array("i", final.token_ids)
        self.connection.send(("sample", key, tokens, array("f", logprobs), final.finish_reason, versions))


def fail(connection: Connection, error: BaseException) -> None:
    """Tell the trainer why, and end this process and all it has started."""
    connection.send(("failed", f"{type(error).__name__}: {error}"))
    os.killpg(0, signal.SIGKILL)


async def main() -> None:
    """Start the engine, say so, serve."""
    connection, inbox = Connection(int(sys.argv[1])), asyncio.Queue()
    threading.Thread(target=_read, args=(connection, asyncio.get_running_loop(), inbox), daemon=True).start()
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            **json.loads(sys.argv[2]),
            worker_extension_cls=_WORKER_EXTENSION,
            load_format="dummy",  # the trainer's weights follow
            skip_tokenizer_init=True,
            logprobs_mode="processed_logprobs",  # at sampling temperature, as the trainer computes them
            disable_log_stats=True,
        )
        engine = AsyncLLM.from_engine_args(arguments)
        connection.send(("reply", "ready"))
        await Server(connection, engine).serve(inbox)
    except Exception as error:
        fail(connection, error)


if __name__ == "__main__":
    asyncio.run(main())
