"""CMU Sphinx en-us, evaluated as a batched HMM in PyTorch."""
