"""A real vLLM server in a process of its own, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

ARGUMENTS = (
    *("--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--block-size", "32"),
    *("--generation-config", "vllm", "--kv-cache-memory-bytes", "20000000", "--max-num-batched-tokens", "8192"),
    *("--no-enable-chunked-prefill", "--logprobs-mode", "processed_logprobs", "--enable-scale-out"),
)


class Server:
    """`vllm serve` with a model of its own, on a port of its own."""

    def __init__(self, folder: Path, *without: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        arguments = [argument for argument in ARGUMENTS if argument not in without]
        # Its `vllm` command doesn't start in the CPU build, which goes by another name.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
        settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | settings,
                start_new_session=True,
            )
        for _ in range(240):
            time.sleep(1)
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
            except OSError:
                continue
            return
        self.stop()
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
