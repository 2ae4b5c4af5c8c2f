"""One module a contender, each with `serve(channel, work, arguments)`; vllm_cpu.py imports nothing of negaware."""
