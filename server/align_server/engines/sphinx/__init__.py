"""CMU Sphinx en-us, evaluated as an HMM."""
