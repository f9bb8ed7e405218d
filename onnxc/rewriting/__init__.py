"""Candidates written into a model: codes of weights, quantized activations, biases, each once for all that share it."""
