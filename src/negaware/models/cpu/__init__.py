"""How a model of the Llama family is made fast on the CPU."""
