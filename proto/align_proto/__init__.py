"""The wire contract of chatalign; the Python code of v1 is generated when the package is built."""
