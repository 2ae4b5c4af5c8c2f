"""What is compiled for CUDA, and runs as it is elsewhere."""
